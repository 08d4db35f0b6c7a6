// Feeds examples to the model and compares what comes out, with gaps in both streams; names the
// first byte that differs.
`timescale 1ns / 1ns
`default_nettype none

module testbench;
    parameter EXAMPLES = 1;
    parameter IN = 1;
    parameter OUT = 1;

    reg clock = 1'b0, reset = 1'b1;
    reg [7:0] inputs[0:EXAMPLES*IN-1];
    reg [7:0] expected[0:EXAMPLES*OUT-1];
    reg [31:0] random = 32'd1;
    integer fed = 0, given = 0, wrong = 0, cycles = 0;

    wire [7:0] out_data;
    wire in_ready, out_valid, out_last;
    wire in_valid = fed < EXAMPLES * IN && random[3:0] != 4'd0;
    wire [7:0] in_data = in_valid ? inputs[fed] : 8'd0;
    wire out_ready = random[5:4] != 2'd0;
    wire ends = given % OUT == OUT - 1;

    model dut (
        .clock(clock), .reset(reset), .in_data(in_data), .in_valid(in_valid), .in_ready(in_ready),
        .out_data(out_data), .out_valid(out_valid), .out_ready(out_ready), .out_last(out_last)
    );

    initial begin
        $readmemh("inputs.hex", inputs);
        $readmemh("expected.hex", expected);
    end

    always #5 clock = ~clock;

    always @(posedge clock) begin
        random <= {random[30:0], random[31] ^ random[21] ^ random[1] ^ random[0]};
        cycles <= cycles + 1;
        if (cycles == 3) reset <= 1'b0;
        if (!reset && in_valid && in_ready) fed <= fed + 1;
        if (!reset && out_valid && out_ready) begin
            given <= given + 1;
            if (out_data !== expected[given] || (ends && !out_last)) begin
                wrong <= wrong + 1;
                if (wrong == 0) begin
                    $display("example %0d, output %0d: %0d instead of %0d", given / OUT,
                        given % OUT, $signed(out_data), $signed(expected[given]));
                end
            end
        end
        if (given == EXAMPLES * OUT) begin
            $display("%0d of %0d outputs differ; %0d cycles", wrong, given, cycles);
            if (wrong != 0) $fatal(1);
            $finish;
        end
    end
endmodule

`default_nettype wire
