// Runs the program: sets registers, and runs one step of the model at a time over three nested
// loops. A word of the program is {register, value}; edge/kernels/microcode.py writes them.
//
// Three pointers follow the loops: two to what is read, one to what is written. Register D2 is what
// a pointer moves by in the innermost loop, D1 and D0 when that loop, or the two innermost ones,
// begin anew.
`default_nettype none

module sequencer #(
    parameter LANES = 4,
    parameter ADDRESS = 12,
    parameter TABLE_ADDRESS = 8,
    parameter PROGRAM_ADDRESS = 8,
    parameter PROGRAM_DEPTH = 256,
    parameter PROGRAM_FILE = "program.hex"
) (
    input wire clock,
    input wire reset,
    // Of the stream in: `take` writes a byte.
    input wire in_valid,
    output wire in_ready,
    // Of the stream out.
    output reg out_valid,
    input wire out_ready,
    output wire out_last,
    // To the lanes.
    output wire load,
    output wire [2:0] load_word,
    output wire [TABLE_ADDRESS-1:0] table_address,
    output wire issue,
    output wire first,
    output wire last,
    output wire [12:0] count,
    input wire [12:0] filter_interval,
    output wire single,  // no filters: single activations
    output wire maximum,
    output wire [ADDRESS-1:0] read_pointer,
    output wire [ADDRESS-1:0] write_pointer,
    // To the RAM: fill or take.
    output wire fill,
    output wire take,
    // Registers that stay as they are during a step.
    output reg signed [15:0] factor_0,
    output reg signed [15:0] factor_1,
    output reg signed [31:0] bias,
    output reg [30:0] multiplier,
    output reg [5:0] shift,
    output reg signed [10:0] offset,
    output reg signed [7:0] low,
    output reg signed [7:0] high
);
    localparam FETCH = 4'd0, READ = 4'd1, DECODE = 4'd2, LOAD = 4'd3, WALK = 4'd4, DRAIN = 4'd5,
        FILL = 4'd6, TAKE = 4'd7, GIVE = 4'd8;
    // Values of register 0: what to run. 0 starts the program again.
    localparam RUN_FILL = 3'd1, RUN_TAKE = 3'd2, RUN_FILTERS = 3'd3, RUN_MAXIMA = 3'd4,
        RUN_SINGLE = 3'd5, RUN_GIVE = 3'd6;
    localparam WORDS = 6;  // of the table per filter
    localparam [5:0] LOADED = 6'd11, ARRIVED = 6'd7;
    localparam [5:0] DRAINED = 6'd24 + LANES[5:0];

    reg [3:0] state;
    reg [2:0] kind;
    reg [5:0] wait_count;
    reg [PROGRAM_ADDRESS-1:0] program_counter;
    wire [35:0] instruction_read;
    reg [35:0] instruction;
    wire [30:0] value = instruction[30:0];

    rom #(
        .WIDTH(36), .DEPTH(PROGRAM_DEPTH), .ADDRESS(PROGRAM_ADDRESS), .FILE(PROGRAM_FILE)
    ) instructions (
        .clock(clock), .address(program_counter), .q(instruction_read)
    );

    // Loops: turns left, and whether none are, which is asked for too often to be computed.
    reg [ADDRESS-1:0] most_0, most_1, most_2, at_0, at_1, at_2;
    reg [12:0] length, counted;
    reg none_0, none_1, none_2, never_1, never_2;
    wire end_2 = none_2;
    wire end_1 = none_2 && none_1;
    wire end_0 = none_2 && none_1 && none_0;
    reg with_filters;
    reg [12:0] last_but_one;
    reg is_single, walked;  // one cycle per window; it is the window's last one
    wire [12:0] interval = with_filters ? filter_interval : length;
    wire accepted = out_valid && out_ready;

    wire moves = state == WALK ? walked && !(with_filters && end_1)
        : state == DRAIN ? wait_count == DRAINED && with_filters && !end_0
        : state == TAKE ? in_valid : state == FILL ? 1'b1 : accepted;

    // Pointers.
    reg [ADDRESS-1:0] in_0, in_0_d0, in_0_d1, in_0_d2;
    reg [ADDRESS-1:0] in_1, in_1_d0, in_1_d1, in_1_d2;
    reg [ADDRESS-1:0] out, out_d0, out_d1, out_d2;
    reg [TABLE_ADDRESS-1:0] filters;

    assign read_pointer = single && counted[0] ? in_1 : in_0;
    assign write_pointer = out;
    assign issue = state == WALK;
    assign first = counted == 0;
    assign last = issue && walked;
    assign count = counted;
    assign single = kind == RUN_SINGLE || kind == RUN_GIVE;
    assign maximum = kind == RUN_MAXIMA;
    assign fill = state == FILL;
    assign in_ready = state == TAKE;
    assign take = in_ready && in_valid;
    assign out_last = end_0;
    assign load = state == LOAD && with_filters && wait_count != 0 && wait_count <= WORDS;
    assign load_word = wait_count[2:0] - 3'd1;
    assign table_address = filters;

    always @(posedge clock) begin
        never_1 <= most_1 == 0;
        never_2 <= most_2 == 0;
        with_filters <= kind == RUN_FILTERS || kind == RUN_MAXIMA;
        last_but_one <= interval - 13'd2;
        is_single <= interval == 13'd1;
        walked <= state != WALK || walked ? is_single : counted == last_but_one;
        case (state)
            FETCH: begin
                program_counter <= program_counter + 1'b1;
                state <= READ;
            end
            READ: begin
                instruction <= instruction_read;
                state <= DECODE;
            end
            DECODE: begin
                state <= FETCH;
                counted <= 0;
                wait_count <= 0;
                case (instruction[35:31])
                    5'd0: begin
                        kind <= value[2:0];
                        at_0 <= most_0;
                        at_1 <= most_1;
                        at_2 <= most_2;
                        none_0 <= most_0 == 0;
                        none_1 <= never_1;
                        none_2 <= never_2;
                        case (value[2:0])
                            RUN_FILL: state <= FILL;
                            RUN_TAKE: state <= TAKE;
                            RUN_FILTERS, RUN_MAXIMA, RUN_SINGLE: state <= LOAD;
                            RUN_GIVE: state <= GIVE;
                            default: program_counter <= 0;
                        endcase
                    end
                    5'd1: most_0 <= value[ADDRESS-1:0];
                    5'd2: most_1 <= value[ADDRESS-1:0];
                    5'd3: most_2 <= value[ADDRESS-1:0];
                    5'd4: in_0 <= value[ADDRESS-1:0];
                    5'd5: in_0_d0 <= value[ADDRESS-1:0];
                    5'd6: in_0_d1 <= value[ADDRESS-1:0];
                    5'd7: in_0_d2 <= value[ADDRESS-1:0];
                    5'd8: in_1 <= value[ADDRESS-1:0];
                    5'd9: in_1_d0 <= value[ADDRESS-1:0];
                    5'd10: in_1_d1 <= value[ADDRESS-1:0];
                    5'd11: in_1_d2 <= value[ADDRESS-1:0];
                    5'd12: out <= value[ADDRESS-1:0];
                    5'd13: out_d0 <= value[ADDRESS-1:0];
                    5'd14: out_d1 <= value[ADDRESS-1:0];
                    5'd15: out_d2 <= value[ADDRESS-1:0];
                    5'd16: filters <= value[TABLE_ADDRESS-1:0];
                    5'd17: length <= value[12:0];
                    5'd18: factor_0 <= value[15:0];
                    5'd19: factor_1 <= value[15:0];
                    5'd20: bias <= {value[30], value};
                    5'd21: multiplier <= value;
                    5'd22: shift <= value[5:0];
                    5'd23: offset <= value[10:0];
                    5'd24: low <= value[7:0];
                    5'd25: high <= value[7:0];
                    default: ;
                endcase
            end
            LOAD: begin
                wait_count <= wait_count + 6'd1;
                if (load) filters <= filters + 1'b1;
                if (wait_count == LOADED) state <= WALK;
            end
            WALK: begin
                wait_count <= 0;
                counted <= walked ? 13'd0 : counted + 13'd1;
                if (walked && (end_0 || (with_filters && end_1))) state <= DRAIN;
            end
            DRAIN: begin
                wait_count <= wait_count + 6'd1;
                if (wait_count == DRAINED) begin
                    wait_count <= 0;
                    state <= with_filters && !end_0 ? LOAD : FETCH;
                end
            end
            FILL: if (end_0) state <= FETCH;
            TAKE: if (in_valid && end_0) state <= FETCH;
            GIVE: begin
                wait_count <= accepted ? 6'd0 : wait_count == ARRIVED ? ARRIVED : wait_count + 6'd1;
                out_valid <= wait_count == ARRIVED && !accepted;
                if (accepted && end_0) state <= FETCH;
            end
            default: state <= FETCH;
        endcase
        if (moves) begin
            at_2 <= end_2 ? most_2 : at_2 - 1'b1;
            none_2 <= end_2 ? never_2 : at_2 == 1;
            if (end_2) begin
                at_1 <= end_1 ? most_1 : at_1 - 1'b1;
                none_1 <= end_1 ? never_1 : at_1 == 1;
            end
            if (end_1) begin
                at_0 <= at_0 - 1'b1;
                none_0 <= at_0 == 1;
            end
            in_0 <= in_0 + (end_1 ? in_0_d0 : end_2 ? in_0_d1 : in_0_d2);
            in_1 <= in_1 + (end_1 ? in_1_d0 : end_2 ? in_1_d1 : in_1_d2);
            out <= out + (end_1 ? out_d0 : end_2 ? out_d1 : out_d2);
        end
        if (reset) begin
            state <= FETCH;
            program_counter <= 0;
            out_valid <= 1'b0;
            kind <= 3'd0;
        end
    end
endmodule

`default_nettype wire
