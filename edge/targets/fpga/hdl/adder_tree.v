// The sum of COUNT signed numbers, a power of two, one level of additions per cycle.
`default_nettype none

module adder_tree #(
    parameter COUNT = 8,
    parameter WIDTH = 16
) (
    /* verilator lint_off UNUSED */  // by a tree of one
    input wire clock,
    /* verilator lint_on UNUSED */
    input wire [COUNT*WIDTH-1:0] terms,
    output wire signed [WIDTH+$clog2(COUNT)-1:0] sum
);
    localparam HALF = COUNT / 2;
    localparam INNER = WIDTH + $clog2(COUNT) - 1;

    generate
        if (COUNT == 1) begin : one
            assign sum = terms;
        end else begin : halves
            wire signed [INNER-1:0] left, right;
            reg signed [INNER:0] both;
            adder_tree #(
                .COUNT(HALF), .WIDTH(WIDTH)
            ) left_half (
                .clock(clock), .terms(terms[HALF*WIDTH-1:0]), .sum(left)
            );
            adder_tree #(
                .COUNT(HALF), .WIDTH(WIDTH)
            ) right_half (
                .clock(clock), .terms(terms[COUNT*WIDTH-1:HALF*WIDTH]), .sum(right)
            );
            always @(posedge clock) both <= {left[INNER-1], left} + {right[INNER-1], right};
            assign sum = both;
        end
    endgenerate
endmodule

`default_nettype wire
