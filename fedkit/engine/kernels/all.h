/* All kernels, for the instruction set that the including source chose. */
#include "conv.h"
#include "elementwise.h"
#include "norm.h"
#include "layer.h"
#include "int_conv.h"
#include "int_elementwise.h"
#include "int_layer.h"
#include "int_gemm.h"
