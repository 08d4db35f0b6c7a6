// A product of two half-precision numbers, rounded to nearest, halves to even, 7 cycles later.
// Subnormal numbers are zero, what is too large becomes infinite; there are no NaNs. All of that
// makes it smaller than IEEE 754 asks for.
`default_nettype none

module fp16_multiply (
    input wire clock,
    input wire [15:0] a,
    input wire [15:0] b,
    output reg [15:0] product
);
    // Operands, and four cycles later the product of the significands.
    reg [15:0] a_1, b_1;
    wire is_zero = a_1[14:10] == 0 || b_1[14:10] == 0;
    wire signed [7:0] exponent_1 = {3'd0, a_1[14:10]} + {3'd0, b_1[14:10]} - 8'd15;
    wire sign, zero;
    wire signed [7:0] exponent;
    delay #(
        .WIDTH(10), .CYCLES(4)
    ) others (
        .clock(clock), .d({a_1[15] ^ b_1[15], is_zero, exponent_1}), .q({sign, zero, exponent})
    );
    /* verilator lint_off UNUSED */
    wire [22:0] whole;  // one bit for a sign
    /* verilator lint_on UNUSED */
    multiply #(
        .A(12), .B(11), .SIGNED(0)
    ) rows (
        .clock(clock), .a({2'b01, a_1[9:0]}), .b({1'b1, b_1[9:0]}), .product(whole)
    );
    // Normalised and rounded.
    wire carry = whole[21];
    wire [9:0] fraction = carry ? whole[20:11] : whole[19:10];
    wire half = carry ? whole[10] : whole[9];
    wire rest = carry ? whole[9:0] != 0 : whole[8:0] != 0;
    wire [10:0] rounded = {1'b0, fraction} + {10'd0, half && (rest || fraction[0])};
    reg [9:0] fraction_6;
    reg signed [7:0] exponent_6;
    reg sign_6, zero_6;

    always @(posedge clock) begin
        a_1 <= a;
        b_1 <= b;
        fraction_6 <= rounded[9:0];
        exponent_6 <= exponent + {7'd0, carry} + {7'd0, rounded[10]};
        {sign_6, zero_6} <= {sign, zero};
        if (zero_6 || exponent_6 < 1) product <= {sign_6, 15'd0};
        else if (exponent_6 > 30) product <= {sign_6, 5'd31, 10'd0};
        else product <= {sign_6, exponent_6[4:0], fraction_6};
    end
endmodule

`default_nettype wire
