/* parts.h: the names of a configuration, in one table, and the checks that it has to pass.

       parts parts;
       if (parts_read(&parts, &config, message, sizeof message)) ...
       if (parts.norm == NORM_RMSNORM) ... */

#ifndef SAMPAN_PARTS_H
#define SAMPAN_PARTS_H

#include "ops/optimizers.h"
#include "sampan.h"

/* The numbers are places in the lists of parts.c. Activations are numbered in matmul/activations.h, from 1 on;
   optimizers in ops/optimizers.h. */
enum { NORM_LAYERNORM, NORM_RMSNORM };
enum { POSITIONS_LEARNED, POSITIONS_ROTARY };
enum { DTYPE_AUTO, DTYPE_FLOAT32, DTYPE_BFLOAT16 };
enum { TENSOR_WEIGHT, TENSOR_GRADIENT, TENSOR_EXP_AVG, TENSOR_EXP_AVG_SQ };

/* What an optimizer updates (UPDATES_...), and how many moments it keeps of that. */
typedef struct optimizer_kind {
    int32_t updates, moments;
} optimizer_kind;
extern const optimizer_kind OPTIMIZER_KINDS[OPTIMIZER_COUNT];

typedef struct parts {
    int32_t norm, positions, activation, dtype, optimizer;
} parts;

/* Looks up every name and checks every number. dtype is never DTYPE_AUTO afterwards. 0; or 1 with an error. */
int32_t parts_read(parts *parts, const sampan_config *config, char *message, int64_t message_size);

/* Returns the TENSOR_... of a name, or -1 with an error in `message`. */
int32_t parts_find_tensor(const char *kind, char *message, int64_t message_size);

#endif
