// The engine that yosys wrote as C++, its memories filled at run time; see loaded.py.
#include "simulate.cc"

template <size_t BITS>
static void fill(memory<BITS> &memory, const uint64_t *words, int64_t count) {
    for (int64_t n = 0; n < count; n++) memory.data[n].template set<uint64_t>(words[n]);
}

#define LANE(N, KIND) model.memory_p_lanes_5b_##N##_5d__2e_one_2e_##KIND##_2e_words
#define FILL(N) \
    case 2 * N + 1: return fill(LANE(N, entries), words, count); \
    case 2 * N + 2: return fill(LANE(N, filters), words, count);

// Memory 0 is the program; then come each lane's weights and filters.
extern "C" void model_fill(void *handle, int which, const uint64_t *words, int64_t count) {
    Model &model = *static_cast<Model *>(handle);
    switch (which) {
        case 0: return fill(model.memory_p_steps_2e_instructions_2e_words, words, count);
        FILL(0) FILL(1) FILL(2) FILL(3)
    }
}
