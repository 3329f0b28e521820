#include "products.h"

/* Multiply rows that lie close together; see `products.py`. */
int multiply(
    const float *from, int64_t num_rows, const Weight *weights, int64_t num_weights, float *to, int64_t outputs,
    int64_t threads
) {
    return product(weights, num_weights, (Rows){from, to, weights->inputs, outputs, num_rows, NULL}, threads);
}
