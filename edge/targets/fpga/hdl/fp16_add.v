// A sum of two half-precision numbers, rounded to nearest, halves to even, 8 cycles later; as
// incomplete as fp16_multiply.
`default_nettype none

module fp16_add (
    input wire clock,
    input wire [15:0] a,
    input wire [15:0] b,
    output reg [15:0] sum
);
    // 1: the larger one first.
    wire swap = b[14:0] > a[14:0];
    reg [15:0] large_1, small_1;
    // 2: significands with two bits below the last.
    reg [12:0] large_2, small_2, large_3;
    reg [4:0] distance_2;
    // 3: the smaller one aligned, and whether anything is left of it.
    wire [12:0] by_8 = distance_2[3] ? {8'd0, small_2[12:8]} : small_2;
    wire [12:0] by_4 = distance_2[2] ? {4'd0, by_8[12:4]} : by_8;
    wire [12:0] by_2 = distance_2[1] ? {2'd0, by_4[12:2]} : by_4;
    wire [12:0] by_1 = distance_2[0] ? {1'd0, by_2[12:1]} : by_2;
    wire far = distance_2[4];
    wire left = (far && small_2 != 0) || (distance_2[3] && small_2[7:0] != 0)
        || (distance_2[2] && by_8[3:0] != 0) || (distance_2[1] && by_4[1:0] != 0)
        || (distance_2[0] && by_2[0]);
    reg [13:0] small_3;
    // 4: added or subtracted.
    reg [14:0] total_4;
    // 5, 6: normalised.
    wire none_8 = total_4[14:7] == 0;
    wire [14:0] up_8 = none_8 ? {total_4[6:0], 8'd0} : total_4;
    wire none_4 = up_8[14:11] == 0;
    reg [14:0] up_5;
    wire none_2 = up_5[14:13] == 0;
    wire [14:0] up_2 = none_2 ? {up_5[12:0], 2'd0} : up_5;
    wire none_1 = !up_2[14];
    reg [14:0] up_6;
    // 7: rounded.
    wire up = up_6[3] && (up_6[4] || up_6[2:0] != 0);
    wire [10:0] rounded = {1'b0, up_6[13:4]} + {10'd0, up};
    reg [9:0] fraction_7;
    reg empty_7;
    // Signs and exponents on their way.
    reg minus_2, minus_3, sign_2, sign_3, sign_4, sign_5, sign_6, sign_7;
    reg [4:0] exponent_2, exponent_3, exponent_4;
    reg signed [6:0] exponent_5, exponent_6, exponent_7;

    always @(posedge clock) begin
        large_1 <= swap ? b : a;
        small_1 <= swap ? a : b;

        large_2 <= {large_1[14:10] != 0, large_1[9:0], 2'b00};
        small_2 <= {small_1[14:10] != 0, small_1[9:0], 2'b00};
        distance_2 <= large_1[14:10] - small_1[14:10];
        minus_2 <= large_1[15] ^ small_1[15];
        {sign_2, exponent_2} <= large_1[15:10];

        large_3 <= large_2;
        small_3 <= {far ? 13'd0 : by_1, left};
        {minus_3, sign_3, exponent_3} <= {minus_2, sign_2, exponent_2};

        total_4 <= minus_3 ? {1'b0, large_3, 1'b0} - {1'b0, small_3}
            : {1'b0, large_3, 1'b0} + {1'b0, small_3};
        {sign_4, exponent_4} <= {sign_3, exponent_3};

        up_5 <= none_4 ? {up_8[10:0], 4'd0} : up_8;
        exponent_5 <= {2'd0, exponent_4} + 7'd1 - {3'd0, none_8, none_4, 2'd0};
        sign_5 <= sign_4;

        up_6 <= none_1 ? {up_2[13:0], 1'd0} : up_2;
        exponent_6 <= exponent_5 - {5'd0, none_2, none_1};
        sign_6 <= sign_5;

        fraction_7 <= rounded[9:0];
        exponent_7 <= exponent_6 + {6'd0, rounded[10]};
        empty_7 <= !up_6[14];
        sign_7 <= sign_6;

        if (empty_7) sum <= 16'd0;
        else if (exponent_7 < 1) sum <= {sign_7, 15'd0};
        else if (exponent_7 > 30) sum <= {sign_7, 5'd31, 10'd0};
        else sum <= {sign_7, exponent_7[4:0], fraction_7};
    end
endmodule

`default_nettype wire
