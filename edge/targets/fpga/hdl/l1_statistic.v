// Statistics of a stream, on the fly, for L1 normalisation: the sums of x and of |x - centre|, over
// at most 2^16 values. `done` is high in the cycle in which they are complete.
`default_nettype none

module l1_statistic (
    input wire clock,
    input wire valid,
    input wire first,
    input wire last,
    input wire signed [7:0] x,
    input wire signed [7:0] centre,
    output reg signed [24:0] sum,
    output reg [24:0] deviation,
    output reg done
);
    reg signed [8:0] distance;
    reg signed [7:0] x_1;
    reg valid_1, first_1, last_1;
    wire [8:0] size = distance[8] ? -distance : distance;

    always @(posedge clock) begin
        distance <= {x[7], x} - {centre[7], centre};
        x_1 <= x;
        valid_1 <= valid;
        first_1 <= first;
        last_1 <= last;
        if (valid_1) begin
            sum <= (first_1 ? 25'sd0 : sum) + {{17{x_1[7]}}, x_1};
            deviation <= (first_1 ? 25'd0 : deviation) + {16'd0, size};
        end
        done <= valid_1 && last_1;
    end
endmodule

`default_nettype wire
