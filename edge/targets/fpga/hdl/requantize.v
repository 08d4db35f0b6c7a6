// Sums become int8: clip(round_half_up(sum * multiplier / 2^shift) + offset, low, high), one result
// per cycle, 9 cycles after its sum. shift is 1 .. 62; sum * multiplier is exact.
`default_nettype none

module requantize (
    input wire clock,
    input wire signed [31:0] sum,
    input wire [30:0] multiplier,
    input wire [5:0] shift,
    // Constant while results are on their way:
    input wire signed [10:0] offset,
    input wire signed [7:0] low,
    input wire signed [7:0] high,
    output reg signed [7:0] q
);
    // 1: operands.  2: four products of halves.
    reg signed [31:0] sum_1;
    reg [30:0] multiplier_1;
    wire signed [15:0] sum_high = sum_1[31:16];
    wire signed [16:0] sum_low = {1'b0, sum_1[15:0]};
    wire signed [15:0] multiplier_high = {1'b0, multiplier_1[30:16]};
    wire signed [16:0] multiplier_low = {1'b0, multiplier_1[15:0]};
    reg signed [31:0] high_high;
    reg signed [32:0] high_low, low_high;
    reg signed [33:0] low_low;
    // 3, 4: their sum.
    reg signed [33:0] middle;
    reg signed [63:0] outer, product;
    // 5, 6: twice the quotient, rounded down. The last bit decides about halves.
    reg signed [63:0] coarse, fine;
    reg [5:0] shift_1, shift_2, shift_3, shift_4;
    reg [3:0] shift_5;
    // 7: clipped to what matters.  8: rounded, half up, and moved.  9: int8.
    wire overflows = fine[63:12] != {52{fine[63]}};
    reg signed [12:0] clipped;
    wire signed [12:0] half = {12'd0, clipped[0]};
    wire signed [12:0] wide_offset = {{2{offset[10]}}, offset};
    reg signed [12:0] moved;
    wire signed [12:0] wide_low = {{5{low[7]}}, low};
    wire signed [12:0] wide_high = {{5{high[7]}}, high};

    always @(posedge clock) begin
        sum_1 <= sum;
        multiplier_1 <= multiplier;
        high_high <= sum_high * multiplier_high;
        high_low <= sum_high * multiplier_low;
        low_high <= sum_low * multiplier_high;
        low_low <= sum_low * multiplier_low;
        middle <= {high_low[32], high_low} + {low_high[32], low_high};
        outer <= {high_high, 32'd0} + {{30{low_low[33]}}, low_low};
        product <= outer + {{14{middle[33]}}, middle, 16'd0};
        shift_1 <= shift - 6'd1;
        shift_2 <= shift_1;
        shift_3 <= shift_2;
        shift_4 <= shift_3;
        coarse <= product >>> {shift_4[5:4], 4'd0};
        shift_5 <= shift_4[3:0];
        fine <= coarse >>> shift_5;
        clipped <= overflows ? {fine[63], {12{~fine[63]}}} : fine[12:0];
        moved <= (clipped >>> 1) + half + wide_offset;
        if (moved < wide_low) q <= low;
        else if (moved > wide_high) q <= high;
        else q <= moved[7:0];
    end
endmodule

`default_nettype wire
