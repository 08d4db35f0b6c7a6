// The array of shift_array in half precision: LANES products per cycle, a tree, an accumulator.
//
// An addition takes eight cycles, so the accumulator holds eight sums in turn: a cycle's operands
// are added to those of eight cycles before. What would add the eight up in the end is not here.
`default_nettype none

module fp16_array #(
    parameter LANES = 8  // a power of two
) (
    input wire clock,
    input wire active,
    input wire first,
    input wire [LANES*16-1:0] x,
    input wire [LANES*16-1:0] weight,
    output wire [15:0] sum
);
    localparam DELAY = 7 + 8 * $clog2(LANES);

    wire [LANES*16-1:0] products;
    wire [15:0] total;
    wire is_active, is_first;
    delay #(
        .WIDTH(2), .CYCLES(DELAY)
    ) control (
        .clock(clock), .d({active, first}), .q({is_active, is_first})
    );

    genvar n;
    generate
        for (n = 0; n < LANES; n = n + 1) begin : lanes
            fp16_multiply one (
                .clock(clock), .a(x[16*n+:16]), .b(weight[16*n+:16]), .product(products[16*n+:16])
            );
        end
    endgenerate

    fp16_tree #(
        .COUNT(LANES)
    ) tree (
        .clock(clock), .terms(products), .sum(total)
    );

    fp16_add accumulator (
        .clock(clock), .a(is_first ? 16'd0 : sum), .b(is_active ? total : 16'd0),
        .sum(sum)
    );
endmodule

`default_nettype wire
