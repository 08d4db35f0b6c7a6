// Drives the model that yosys wrote as C++ (write_cxxrtl), one example per call.
#include <cstdint>

#include "model.cc"

typedef cxxrtl_design::p_model Model;

static void half_cycle(Model &model, bool clock) {
    model.p_clock.set<bool>(clock);
    model.step();
}

extern "C" {

void *model_new() {
    Model *model = new Model();
    model->p_reset.set<bool>(true);
    for (int n = 0; n < 8; n++) half_cycle(*model, n % 2);
    model->p_reset.set<bool>(false);
    return model;
}

void model_delete(void *model) { delete static_cast<Model *>(model); }

// Returns the cycles that it took, or -1 if they would exceed `most`. No stream ever waits.
int64_t model_run(void *handle, const uint8_t *in, int64_t in_bytes, uint8_t *out,
                  int64_t out_bytes, int64_t most) {
    Model &model = *static_cast<Model *>(handle);
    int64_t fed = 0, given = 0, cycles = 0;
    model.p_out__ready.set<bool>(true);
    for (; given < out_bytes; cycles++) {
        if (cycles == most) return -1;
        model.p_in__valid.set<bool>(fed < in_bytes);
        if (fed < in_bytes) model.p_in__data.set<uint8_t>(in[fed]);
        half_cycle(model, false);
        fed += fed < in_bytes && model.p_in__ready.get<bool>();
        if (model.p_out__valid.get<bool>()) out[given++] = model.p_out__data.get<uint8_t>();
        half_cycle(model, true);
    }
    return cycles;
}
}
