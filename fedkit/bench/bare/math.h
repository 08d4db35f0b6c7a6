/* What the kernels need of <math.h> where there is no C library; the compiler's own has sqrt. */
#ifndef BARE_MATH_H
#define BARE_MATH_H
#define INFINITY __builtin_inff()
double sqrt(double x);
#endif
