// The sum of COUNT half-precision numbers, a power of two; see adder_tree.
`default_nettype none

module fp16_tree #(
    parameter COUNT = 8
) (
    /* verilator lint_off UNUSED */  // by a tree of one
    input wire clock,
    /* verilator lint_on UNUSED */
    input wire [COUNT*16-1:0] terms,
    output wire [15:0] sum
);
    localparam HALF = COUNT / 2;

    generate
        if (COUNT == 1) begin : one
            assign sum = terms;
        end else begin : halves
            wire [15:0] left, right;
            fp16_tree #(
                .COUNT(HALF)
            ) left_half (
                .clock(clock), .terms(terms[HALF*16-1:0]), .sum(left)
            );
            fp16_tree #(
                .COUNT(HALF)
            ) right_half (
                .clock(clock), .terms(terms[COUNT*16-1:HALF*16]), .sum(right)
            );
            fp16_add both (
                .clock(clock), .a(left), .b(right), .sum(sum)
            );
        end
    endgenerate
endmodule

`default_nettype wire
