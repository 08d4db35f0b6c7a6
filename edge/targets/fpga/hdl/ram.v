// A copy of the activations: one byte read and one written per cycle; it comes a cycle after its
// address.
`default_nettype none

module ram #(
    parameter DEPTH = 16,
    parameter ADDRESS = 4
) (
    input wire clock,
    input wire [ADDRESS-1:0] read_address,
    output reg [7:0] q,
    input wire write,
    input wire [ADDRESS-1:0] write_address,
    input wire [7:0] data
);
    reg [7:0] bytes[0:DEPTH-1];

    always @(posedge clock) begin
        q <= bytes[read_address];
        if (write) bytes[write_address] <= data;
    end
endmodule

`default_nettype wire
