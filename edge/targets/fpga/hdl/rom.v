// Constants from a file: one word per cycle, a cycle after its address.
`default_nettype none

module rom #(
    parameter WIDTH = 8,
    parameter DEPTH = 16,
    parameter ADDRESS = 4,
    parameter FILE = "rom.hex"
) (
    input wire clock,
    input wire [ADDRESS-1:0] address,
    output reg [WIDTH-1:0] q
);
    reg [WIDTH-1:0] words[0:DEPTH-1];

    initial $readmemh(FILE, words);

    always @(posedge clock) q <= words[address];
endmodule

`default_nettype wire
