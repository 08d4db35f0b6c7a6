// A lane: walks the weights of one filter at a time and sums their products with activations.
//
// A weight is {gap, value}: its activation lies `gap` bytes behind that of the weight before, or
// behind the filter's first byte. What is pruned is not stored and takes no cycle. A value of 0 is a
// bridge: it moves the address and is no operand, of a sum or of a maximum. The table holds WORDS
// words per filter. From the pipeline's start to `sum` it takes 8 cycles:
//   A address of the weight  B weight  C register  D address of the activation  E activation
//   F register  G product  H sum
`default_nettype none

module lane #(
    parameter ADDRESS = 12,  // bits of an address of an activation
    parameter RAM_DEPTH = 4096,
    parameter GAP = 8,  // bits of a gap
    parameter WEIGHT = 8,  // bits of a weight's value
    parameter WEIGHT_ADDRESS = 10,
    parameter WEIGHT_DEPTH = 1024,
    parameter WEIGHT_FILE = "weights_0.hex",
    parameter TABLE_ADDRESS = 8,
    parameter TABLE_DEPTH = 256,
    parameter TABLE_FILE = "filters_0.hex",
    parameter MAXIMUM = 0
) (
    input wire clock,
    // The table: a word of it is loaded into a register.
    input wire load,
    input wire [2:0] load_word,
    input wire [TABLE_ADDRESS-1:0] table_address,
    // The walk: number `count` of a filter's weights, for the window that starts at `base`.
    input wire issue,
    input wire first,
    input wire [12:0] count,
    input wire [ADDRESS-1:0] base,
    input wire maximum,
    // Single activations, for ops without filters.
    input wire single,
    input wire [ADDRESS-1:0] single_address,
    output reg signed [7:0] x,  // of stage F
    // The filter's result and what becomes of it.
    output wire signed [31:0] sum,
    output reg [30:0] multiplier,
    output reg [5:0] shift,
    output reg [12:0] interval,  // cycles per window
    output reg [ADDRESS-1:0] out_offset,
    output reg used,  // whether there is a filter
    // Activations are written to all lanes alike.
    input wire write,
    input wire [ADDRESS-1:0] write_address,
    input wire [7:0] write_data
);
    // The filter's registers.
    wire [31:0] word;
    reg loading;
    reg [2:0] loading_word;
    reg signed [31:0] bias;
    reg [WEIGHT_ADDRESS-1:0] start;
    reg [ADDRESS-1:0] in_offset;
    reg [12:0] weights;

    rom #(
        .WIDTH(32), .DEPTH(TABLE_DEPTH), .ADDRESS(TABLE_ADDRESS), .FILE(TABLE_FILE)
    ) filters (
        .clock(clock), .address(table_address), .q(word)
    );

    always @(posedge clock) begin
        loading <= load;
        loading_word <= load_word;
        if (loading) begin
            case (loading_word)
                3'd0: bias <= word;
                3'd1: multiplier <= word[30:0];
                3'd2: start <= word[WEIGHT_ADDRESS-1:0];
                3'd3: in_offset <= word[ADDRESS-1:0];
                3'd4: {used, out_offset} <= {word[31], word[ADDRESS-1:0]};
                default: {shift, interval, weights} <= word;
            endcase
        end
    end

    // Stages A to C: the weight.
    wire [GAP+WEIGHT-1:0] word_b;
    reg [GAP+WEIGHT-1:0] entry;
    wire [GAP-1:0] gap = entry[GAP+WEIGHT-1:WEIGHT];
    reg [WEIGHT_ADDRESS-1:0] entry_address;
    reg active_a, active_b, active_c, first_a, first_b, first_c;
    reg [ADDRESS-1:0] base_a, base_b, base_c, single_a, single_b, single_c;
    /* verilator lint_off WIDTH */
    wire [WEIGHT_ADDRESS-1:0] next_entry = start + count;
    wire [ADDRESS-1:0] wide_gap = gap;
    /* verilator lint_on WIDTH */

    rom #(
        .WIDTH(GAP + WEIGHT), .DEPTH(WEIGHT_DEPTH), .ADDRESS(WEIGHT_ADDRESS), .FILE(WEIGHT_FILE)
    ) entries (
        .clock(clock), .address(entry_address), .q(word_b)
    );

    always @(posedge clock) begin
        entry_address <= next_entry;
        active_a <= issue && count < weights;
        first_a <= issue && first;
        base_a <= base + in_offset;
        single_a <= single_address;
        active_b <= active_a;
        first_b <= first_a;
        base_b <= base_a;
        single_b <= single_a;
        entry <= word_b;
        active_c <= active_b;
        first_c <= first_b;
        base_c <= base_b;
        single_c <= single_b;
    end

    // Stages D to F: the activation.
    reg active_d, active_e, active_f, first_d, first_e, first_f;
    reg [ADDRESS-1:0] address;
    reg signed [WEIGHT-1:0] weight_d, weight_e, weight_f;
    wire [7:0] activation;

    ram #(
        .DEPTH(RAM_DEPTH), .ADDRESS(ADDRESS)
    ) activations (
        .clock(clock), .read_address(address), .q(activation),
        .write(write), .write_address(write_address), .data(write_data)
    );

    always @(posedge clock) begin
        if (single) address <= single_c;
        else if (active_c) address <= (first_c ? base_c : address) + wide_gap;
        active_d <= active_c && entry[WEIGHT-1:0] != 0;
        first_d <= first_c;
        weight_d <= entry[WEIGHT-1:0];
        active_e <= active_d;
        first_e <= first_d;
        weight_e <= weight_d;
        active_f <= active_e;
        first_f <= first_e;
        weight_f <= weight_e;
        x <= activation;
    end

    pe #(
        .WEIGHT(WEIGHT), .MAXIMUM(MAXIMUM)
    ) element (
        .clock(clock), .active(active_f), .first(first_f), .maximum(maximum),
        .x(x), .weight(weight_f), .bias(bias), .sum(sum)
    );
endmodule

`default_nettype wire
