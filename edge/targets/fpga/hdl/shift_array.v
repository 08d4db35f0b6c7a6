// ShiftQuant's array: LANES products per cycle, shifted before they are accumulated.
//
//   sum = (first ? 0 : sum) + sum over lanes of (x * weight << shift)
//
// x has BITS bits and belongs to its channel's group; `shift` is GROUPS - 1 less the group's
// exponent. With SHARED = 1 all lanes hold channels of one group in a cycle, so that one shifter
// behind the tree serves them: a sum does not ask in what order its channels come. With SHARED = 0
// each lane has a shift of its own. GROUPS = 1 is the plain integer array of equal width.
// `sum` has a cycle's operands $clog2(LANES) + $clog2(WEIGHT) + 2 cycles later, and with shifts one
// more.
`default_nettype none

module shift_array #(
    parameter LANES = 8,  // a power of two, at least 2
    parameter BITS = 8,  // of x
    parameter WEIGHT = 8,  // bits of a weight
    parameter GROUPS = 4,  // 1 to 8
    parameter SHARED = 1,
    parameter SUM = 32,
    parameter SHIFT = GROUPS > 1 ? $clog2(GROUPS) : 1  // bits of a shift; not to be set
) (
    input wire clock,
    input wire active,
    input wire first,
    input wire [LANES*BITS-1:0] x,
    input wire [LANES*WEIGHT-1:0] weight,
    /* verilator lint_off UNUSED */  // by a plain array
    input wire [(SHARED!=0?1:LANES)*SHIFT-1:0] shift,
    /* verilator lint_on UNUSED */
    output reg signed [SUM-1:0] sum
);
    localparam LEVELS = $clog2(LANES);
    localparam STEPS = $clog2(WEIGHT);
    localparam OWN = SHARED != 0 ? 0 : GROUPS - 1;  // bits that a lane's own shift adds
    localparam LATE = SHARED != 0 ? GROUPS - 1 : 0;  // bits that the shared shift adds
    localparam PRODUCT = BITS + WEIGHT;
    localparam DELAY = STEPS + LEVELS + (GROUPS == 1 ? 1 : 2);  // until a cycle's total is there
    localparam TREE = PRODUCT + OWN + LEVELS;

    // Operands; products after STEPS cycles; shifted, each by itself.
    reg [LANES*BITS-1:0] x_1;
    reg [LANES*WEIGHT-1:0] weight_1;
    wire [LANES*(PRODUCT+OWN)-1:0] terms;

    always @(posedge clock) begin
        x_1 <= x;
        weight_1 <= weight;
    end

    genvar n;
    generate
        for (n = 0; n < LANES; n = n + 1) begin : lanes
            wire signed [PRODUCT-1:0] product;
            multiply #(
                .A(BITS), .B(WEIGHT)
            ) rows (
                .clock(clock), .a(x_1[BITS*n+:BITS]), .b(weight_1[WEIGHT*n+:WEIGHT]),
                .product(product)
            );
            if (OWN == 0) begin : plain
                assign terms[PRODUCT*n+:PRODUCT] = product;
            end else begin : shifted
                localparam WIDE = PRODUCT + OWN;
                wire signed [WIDE-1:0] wide = {{OWN{product[PRODUCT-1]}}, product};
                wire [SHIFT-1:0] its_shift;
                delay #(
                    .WIDTH(SHIFT), .CYCLES(STEPS + 1)
                ) with_product (
                    .clock(clock), .d(shift[SHIFT*n+:SHIFT]), .q(its_shift)
                );
                reg signed [WIDE-1:0] term;
                always @(posedge clock) term <= wide <<< its_shift;
                assign terms[WIDE*n+:WIDE] = term;
            end
        end
    endgenerate

    // Then a level of the tree in each cycle.
    wire signed [TREE-1:0] total;
    adder_tree #(
        .COUNT(LANES), .WIDTH(PRODUCT + OWN)
    ) tree (
        .clock(clock), .terms(terms), .sum(total)
    );

    // Shifted together, and accumulated.
    wire is_active, is_first;
    delay #(
        .WIDTH(2), .CYCLES(DELAY)
    ) control (
        .clock(clock), .d({active, first}), .q({is_active, is_first})
    );
    wire signed [TREE+LATE-1:0] addend;
    generate
        if (LATE == 0) begin : unshifted
            assign addend = total;
        end else begin : shifted_together
            wire [SHIFT-1:0] its_shift;
            delay #(
                .WIDTH(SHIFT), .CYCLES(STEPS + LEVELS + 1)
            ) with_total (
                .clock(clock), .d(shift), .q(its_shift)
            );
            wire signed [TREE+LATE-1:0] wide = {{LATE{total[TREE-1]}}, total};
            reg signed [TREE+LATE-1:0] moved;
            always @(posedge clock) moved <= wide <<< its_shift;
            assign addend = moved;
        end
    endgenerate
    wire signed [SUM-1:0] wide_addend = {{(SUM - TREE - LATE) {addend[TREE+LATE-1]}}, addend};

    always @(posedge clock) begin
        if (is_active) sum <= (is_first ? {SUM{1'b0}} : sum) + wide_addend;
    end
endmodule

`default_nettype wire
