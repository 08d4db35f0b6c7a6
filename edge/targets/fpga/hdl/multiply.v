// a * b without multiplier blocks: rows of a are added in pairs, pairs in pairs again, one level
// per cycle. `product` comes LATENCY cycles later, at least $clog2(B).
`default_nettype none

module multiply #(
    parameter A = 8,  // bits of a, which is signed
    parameter B = 8,  // bits of b
    parameter SIGNED = 1,  // whether b is signed
    parameter LATENCY = $clog2(B)
) (
    input wire clock,
    input wire signed [A-1:0] a,
    input wire [B-1:0] b,
    output wire signed [A+B-1:0] product
);
    localparam LOW = B / 2;
    localparam HIGH = B - LOW;
    localparam MINUS = SIGNED != 0 && HIGH == 1;  // a row of b's sign

    generate
        if (B == 1) begin : row
            delay #(
                .WIDTH(A + 1), .CYCLES(LATENCY)
            ) only (
                .clock(clock), .d(b[0] ? {a[A-1], a} : {(A + 1) {1'b0}}), .q(product)
            );
        end else begin : halves
            wire signed [A+LOW-1:0] low;
            wire signed [A+HIGH-1:0] high;
            reg signed [A+B-1:0] both;
            multiply #(
                .A(A), .B(LOW), .SIGNED(0), .LATENCY(LATENCY - 1)
            ) low_half (
                .clock(clock), .a(a), .b(b[LOW-1:0]), .product(low)
            );
            multiply #(
                .A(A), .B(HIGH), .SIGNED(SIGNED), .LATENCY(LATENCY - 1)
            ) high_half (
                .clock(clock), .a(a), .b(b[B-1:LOW]), .product(high)
            );
            wire signed [A+B-1:0] wide_low = {{HIGH{low[A+LOW-1]}}, low};
            wire signed [A+B-1:0] wide_high = {high, {LOW{1'b0}}};
            always @(posedge clock) both <= MINUS ? wide_low - wide_high : wide_low + wide_high;
            assign product = both;
        end
    endgenerate
endmodule

`default_nettype wire
