// A sum of two half-precision numbers, rounded to nearest, halves to even, 5 cycles later; as
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
    // 2: the smaller one aligned; two bits below the last, and whether anything is left of it.
    wire [4:0] distance = large_1[14:10] - small_1[14:10];
    wire [12:0] small_whole = {small_1[14:10] != 0, small_1[9:0], 2'b00};
    wire [12:0] large_whole = {large_1[14:10] != 0, large_1[9:0], 2'b00};
    wire [12:0] lost = small_whole & ~(13'h1fff << distance);
    reg [12:0] large_2, small_2;
    reg sticky_2, minus_2, sign_2, sign_3, sign_4;
    reg [4:0] exponent_2, exponent_3;
    // 3: added or subtracted; of what is left, a bit.
    reg [14:0] total;
    // 4: normalised.
    reg [3:0] zeros;
    integer n;
    always @* begin
        zeros = 4'd15;
        for (n = 0; n < 15; n = n + 1) if (total[n]) zeros = 4'd14 - n[3:0];
    end
    /* verilator lint_off UNUSED */
    reg [14:0] normal;  // begins with a 1
    /* verilator lint_on UNUSED */
    reg signed [6:0] exponent_4;
    reg empty_4;
    // 5: rounded.
    wire up = normal[3] && (normal[4] || normal[2:0] != 0);
    wire [10:0] rounded = {1'b0, normal[13:4]} + {10'd0, up};
    wire signed [6:0] final_exponent = exponent_4 + {6'd0, rounded[10]};

    always @(posedge clock) begin
        large_1 <= swap ? b : a;
        small_1 <= swap ? a : b;
        large_2 <= large_whole;
        small_2 <= small_whole >> distance;
        sticky_2 <= lost != 0;
        minus_2 <= large_1[15] ^ small_1[15];
        sign_2 <= large_1[15];
        exponent_2 <= large_1[14:10];
        total <= minus_2 ? {1'b0, large_2, 1'b0} - {1'b0, small_2, sticky_2}
            : {1'b0, large_2, 1'b0} + {1'b0, small_2, sticky_2};
        sign_3 <= sign_2;
        exponent_3 <= exponent_2;
        normal <= total << zeros;
        exponent_4 <= $signed({2'd0, exponent_3}) + 7'sd1 - $signed({3'd0, zeros});
        empty_4 <= total == 0;
        sign_4 <= sign_3;
        if (empty_4) sum <= 16'd0;
        else if (final_exponent < 1) sum <= {sign_4, 15'd0};
        else if (final_exponent > 30) sum <= {sign_4, 5'd31, 10'd0};
        else sum <= {sign_4, final_exponent[4:0], rounded[9:0]};
    end
endmodule

`default_nettype wire
