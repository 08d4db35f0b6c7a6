// What came CYCLES cycles ago; 0 is a wire.
`default_nettype none

module delay #(
    parameter WIDTH = 1,
    parameter CYCLES = 1
) (
    /* verilator lint_off UNUSED */  // by a wire
    input wire clock,
    /* verilator lint_on UNUSED */
    input wire [WIDTH-1:0] d,
    output wire [WIDTH-1:0] q
);
    generate
        if (CYCLES == 0) begin : now
            assign q = d;
        end else begin : later
            reg [WIDTH-1:0] held;
            always @(posedge clock) held <= d;
            delay #(
                .WIDTH(WIDTH), .CYCLES(CYCLES - 1)
            ) others (
                .clock(clock), .d(held), .q(q)
            );
        end
    endgenerate
endmodule

`default_nettype wire
