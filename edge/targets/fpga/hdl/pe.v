// A processing element: sum = (first ? bias : sum) + x * weight, two cycles after its operands.
// With MAXIMUM it can keep the largest product instead, of those that there were operands for.
`default_nettype none

module pe #(
    parameter X = 8,  // bits of x
    parameter WEIGHT = 8,  // bits of a weight
    parameter SUM = 32,  // bits of the sum
    parameter MAXIMUM = 0  // whether `maximum` is heeded
) (
    input wire clock,
    input wire active,  // there are operands
    input wire first,  // a sum begins, with operands or without
    input wire maximum,
    input wire signed [X-1:0] x,
    input wire signed [WEIGHT-1:0] weight,
    input wire signed [SUM-1:0] bias,
    output reg signed [SUM-1:0] sum
);
    reg is_active, is_first;
    reg signed [X+WEIGHT-1:0] product;
    wire signed [SUM-1:0] wide = {{(SUM - X - WEIGHT) {product[X+WEIGHT-1]}}, product};
    wire signed [SUM-1:0] start = is_first ? bias : sum;
    wire largest = MAXIMUM != 0 && maximum;

    always @(posedge clock) begin
        is_active <= active;
        is_first <= first;
        product <= x * weight;
        if (!is_active) sum <= start;
        else if (!largest) sum <= start + wide;
        else if (is_first || wide > sum) sum <= wide;
    end
endmodule

`default_nettype wire
