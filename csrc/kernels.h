/* kernels.h: the table of ops, filled with the functions that ops.c, attention.c and optim.c have just defined. See kernels_*.c. */

#include "ops.c"
#include "attention.c"
#include "optim.c"

#define KERNELS_TABLE { \
    zero, last_rows, embedding_forward, embedding_backward, norm_forward, norm_backward, head_norm_forward, head_norm_backward, \
    rotary_forward, rotary_backward, linear_forward, linear_gelu_forward, linear_backward, cache_append, \
    attention_forward, attention_backward, swiglu_forward, swiglu_backward, dropout_forward, loss_forward_backward, squares_sum, adamw_update, muon_update, bfloat16_copy, \
}
