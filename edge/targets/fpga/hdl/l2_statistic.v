// Statistics of a stream, on the fly, for L2 normalisation: the sum of x, and the root of the sum
// of (x - centre)^2, rounded down, over at most 2^16 values. The root comes bit by bit: `done` is
// high 21 cycles after a stream's last value.
`default_nettype none

module l2_statistic (
    input wire clock,
    input wire valid,
    input wire first,
    input wire last,
    input wire signed [7:0] x,
    input wire signed [7:0] centre,
    output reg signed [24:0] sum,
    output reg [16:0] deviation,
    output reg done
);
    reg signed [8:0] distance;
    reg signed [7:0] x_1, x_2;
    reg valid_1, first_1, last_1, valid_2, first_2, last_2, begins;
    reg [17:0] square;
    reg [33:0] squares;
    // The root: two bits of the radicand enter the remainder, and one of the root is found.
    reg [33:0] radicand;
    reg [18:0] remainder;
    reg [4:0] left;
    wire [20:0] next = {remainder, radicand[33:32]};
    wire [20:0] trial = {2'd0, deviation, 2'd1};
    wire fits = next >= trial;
    wire [18:0] difference = next[18:0] - trial[18:0];

    always @(posedge clock) begin
        distance <= {x[7], x} - {centre[7], centre};
        square <= distance * distance;
        x_1 <= x;
        x_2 <= x_1;
        {valid_1, first_1, last_1} <= {valid, first, last};
        {valid_2, first_2, last_2} <= {valid_1, first_1, last_1};
        if (valid_2) begin
            sum <= (first_2 ? 25'sd0 : sum) + {{17{x_2[7]}}, x_2};
            squares <= (first_2 ? 34'd0 : squares) + {16'd0, square};
        end
        begins <= valid_2 && last_2;
        if (begins) begin
            radicand <= squares;
            remainder <= 19'd0;
            deviation <= 17'd0;
            left <= 5'd17;
        end else if (left != 0) begin
            radicand <= {radicand[31:0], 2'd0};
            remainder <= fits ? difference : next[18:0];
            deviation <= {deviation[15:0], fits};
            left <= left - 5'd1;
        end
        done <= left == 5'd1 && !begins;
    end
endmodule

`default_nettype wire
