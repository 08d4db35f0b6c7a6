// A whole model: takes its input from one stream and gives its output to another, byte by byte.
//
// LANES lanes compute LANES filters at a time, each from its own copy of the activations; their
// sums are requantised one after the other and written to all copies.
`default_nettype none

module engine #(
    parameter LANES = 4,
    parameter ADDRESS = 12,
    parameter RAM_DEPTH = 4096,
    parameter GAP = 8,
    parameter WEIGHT = 8,
    parameter WEIGHT_ADDRESS = 10,
    parameter WEIGHT_DEPTH = 1024,
    parameter TABLE_ADDRESS = 8,
    parameter TABLE_DEPTH = 256,
    parameter PROGRAM_ADDRESS = 8,
    parameter PROGRAM_DEPTH = 256,
    parameter MAXIMUM = 0
) (
    input wire clock,
    input wire reset,
    input wire [7:0] in_data,
    input wire in_valid,
    output wire in_ready,
    output wire [7:0] out_data,
    output wire out_valid,
    input wire out_ready,
    output wire out_last
);
    localparam LANE_BITS = LANES > 1 ? $clog2(LANES) : 1;
    localparam [LANE_BITS-1:0] LAST_LANE = LANES[LANE_BITS-1:0] - 1'b1;

    wire load, issue, first, last, single, maximum, fill, take;
    wire [2:0] load_word;
    wire [TABLE_ADDRESS-1:0] table_address;
    wire [12:0] count;
    wire [ADDRESS-1:0] read_pointer, write_pointer;
    wire signed [15:0] factor_0, factor_1;
    wire signed [31:0] bias;
    wire [30:0] multiplier;
    wire [5:0] shift;
    wire signed [10:0] offset;
    wire signed [7:0] low, high;

    /* verilator lint_off UNUSED */  // lane 0 speaks for all
    wire [8*LANES-1:0] x;
    wire [13*LANES-1:0] intervals;
    /* verilator lint_on UNUSED */
    wire [32*LANES-1:0] sums;
    wire [31*LANES-1:0] multipliers;
    wire [6*LANES-1:0] shifts;
    wire [ADDRESS*LANES-1:0] out_offsets;
    wire [LANES-1:0] used;

    reg write;
    reg [ADDRESS-1:0] write_address;
    reg [7:0] write_data;

    sequencer #(
        .LANES(LANES), .ADDRESS(ADDRESS), .TABLE_ADDRESS(TABLE_ADDRESS),
        .PROGRAM_ADDRESS(PROGRAM_ADDRESS), .PROGRAM_DEPTH(PROGRAM_DEPTH)
    ) steps (
        .clock(clock), .reset(reset), .in_valid(in_valid), .in_ready(in_ready),
        .out_valid(out_valid), .out_ready(out_ready), .out_last(out_last),
        .load(load), .load_word(load_word), .table_address(table_address),
        .issue(issue), .first(first), .last(last), .count(count),
        .filter_interval(intervals[12:0]), .single(single), .maximum(maximum),
        .read_pointer(read_pointer), .write_pointer(write_pointer), .fill(fill), .take(take),
        .factor_0(factor_0), .factor_1(factor_1), .bias(bias), .multiplier(multiplier),
        .shift(shift), .offset(offset), .low(low), .high(high)
    );

    genvar n;
    generate
        for (n = 0; n < LANES; n = n + 1) begin : lanes
            localparam [7:0] DIGIT = 8'd48 + n;
            lane #(
                .ADDRESS(ADDRESS), .RAM_DEPTH(RAM_DEPTH), .GAP(GAP), .WEIGHT(WEIGHT),
                .WEIGHT_ADDRESS(WEIGHT_ADDRESS), .WEIGHT_DEPTH(WEIGHT_DEPTH),
                .WEIGHT_FILE({"weights_", DIGIT, ".hex"}),
                .TABLE_ADDRESS(TABLE_ADDRESS), .TABLE_DEPTH(TABLE_DEPTH),
                .TABLE_FILE({"filters_", DIGIT, ".hex"}), .MAXIMUM(MAXIMUM)
            ) one (
                .clock(clock), .load(load), .load_word(load_word), .table_address(table_address),
                .issue(issue), .first(first), .count(count), .base(read_pointer),
                .maximum(maximum), .single(n == 0 && single), .single_address(read_pointer),
                .x(x[8*n+:8]), .sum(sums[32*n+:32]), .multiplier(multipliers[31*n+:31]),
                .shift(shifts[6*n+:6]), .interval(intervals[13*n+:13]),
                .out_offset(out_offsets[ADDRESS*n+:ADDRESS]), .used(used[n]),
                .write(write), .write_address(write_address), .write_data(write_data)
            );
        end
    endgenerate

    assign out_data = x[7:0];

    // Ops without filters: factor_0 * one activation, or that + factor_1 * another one. Operands
    // take six cycles to come, as in a lane.
    reg [5:0] issued, began;
    reg [95:0] factors;
    wire signed [31:0] single_sum;

    pe #(
        .WEIGHT(16)
    ) element (
        .clock(clock), .active(issued[5]), .first(began[5]), .maximum(1'b0), .x(x[7:0]),
        .weight(factors[95:80]), .bias(bias), .sum(single_sum)
    );

    always @(posedge clock) begin
        issued <= {issued[4:0], issue};
        began <= {began[4:0], issue && first};
        factors <= {factors[79:0], count[0] ? factor_1 : factor_0};
    end

    // Sums are held while the next ones come up, and leave one by one.
    reg [7:0] ended;
    reg [8*ADDRESS-1:0] targets;
    reg [32*LANES-1:0] held;
    reg [ADDRESS-1:0] target;
    reg [LANE_BITS-1:0] lane_number;
    reg draining;

    always @(posedge clock) begin
        ended <= reset ? 8'd0 : {ended[6:0], last};
        targets <= {targets[7*ADDRESS-1:0], write_pointer};
        if (ended[7]) begin
            held <= single ? {{(32*LANES-32) {1'b0}}, single_sum} : sums;
            target <= targets[8*ADDRESS-1-:ADDRESS];
            lane_number <= 0;
            draining <= 1'b1;
        end else begin
            lane_number <= lane_number + 1'b1;
            if (single || lane_number == LAST_LANE) draining <= 1'b0;
        end
        if (reset) draining <= 1'b0;
    end

    // Requantised and written.
    reg signed [31:0] sum;
    reg [30:0] its_multiplier;
    reg [5:0] its_shift;
    reg [ADDRESS-1:0] its_address;
    reg is_result;
    reg [8:0] results;
    reg [9*ADDRESS-1:0] addresses;
    wire signed [7:0] q;

    requantize rounding (
        .clock(clock), .sum(sum), .multiplier(its_multiplier), .shift(its_shift),
        .offset(offset), .low(low), .high(high), .q(q)
    );

    always @(posedge clock) begin
        sum <= held[32*lane_number+:32];
        its_multiplier <= single ? multiplier : multipliers[31*lane_number+:31];
        its_shift <= single ? shift : shifts[6*lane_number+:6];
        its_address <= single ? target : target + out_offsets[ADDRESS*lane_number+:ADDRESS];
        is_result <= draining && (single || used[lane_number]) && !reset;
        results <= reset ? 9'd0 : {results[7:0], is_result};
        addresses <= {addresses[8*ADDRESS-1:0], its_address};
        write <= fill || take || results[8];
        write_address <= fill || take ? write_pointer : addresses[9*ADDRESS-1-:ADDRESS];
        write_data <= fill ? bias[7:0] : take ? in_data : q;
    end
endmodule

`default_nettype wire
