/* sampan.h: the C engine's whole public interface. It trains and runs GPTs of three families; c_engine.py and main.c
   use it.

       sampan_config config = {.struct_size = sizeof config, .family = SAMPAN_GPT2, .n_layer = 4, ..., .training = 1};
       char message[256];
       sampan_engine *engine;
       if (sampan_create(&engine, &config, message, sizeof message)) { puts(message); ... }
       for each parameter i: sampan_write(engine, SAMPAN_WEIGHT, i, values);
       sampan_accumulate(engine, x, y, batch, tokens);          // as often as there are micro-batches
       sampan_update(engine, learning_rate, &loss, &grad_norm);
       sampan_destroy(engine);

   A function returns SAMPAN_OK or another code, and then sampan_error(engine) says in a sentence what was wrong.
   Nothing here prints, exits or keeps global state. One thread at a time may use an engine and its sessions; two
   engines are independent.

   What it does not do: files, tokenizers, batches, schedules, sampling, initial weights. Those belong to its callers.
 */

#ifndef SAMPAN_H
#define SAMPAN_H

#include <stdint.h>

#ifdef _WIN32
#define SAMPAN_API __declspec(dllexport)
#else
#define SAMPAN_API __attribute__((visibility("default")))
#endif

enum { SAMPAN_OK = 0, SAMPAN_BAD_ARGUMENT = 1, SAMPAN_NO_MEMORY = 2, SAMPAN_NO_THREADS = 3, SAMPAN_NOT_FINITE = 4 };
enum { SAMPAN_GPT2 = 0, SAMPAN_LLAMA = 1, SAMPAN_QWEN3 = 2 };
enum { SAMPAN_FLOAT32 = 0, SAMPAN_BFLOAT16 = 1 };
enum { SAMPAN_ADAMW = 0, SAMPAN_MUON = 1 };
enum { SAMPAN_WEIGHT = 0, SAMPAN_GRADIENT = 1, SAMPAN_EXP_AVG = 2, SAMPAN_EXP_AVG_SQ = 3 };

/* The names and meanings of config.py; every size is resolved (no "auto"). */
typedef struct sampan_config {
    int64_t struct_size;      /* sizeof(sampan_config): a caller built for another version is refused */
    int32_t family;           /* SAMPAN_GPT2 | SAMPAN_LLAMA | SAMPAN_QWEN3 */
    int32_t n_layer, n_head, n_kv_head, n_embd, n_inner, head_dim, block_size, vocab_size;
    int32_t bias;
    int32_t tie_word_embeddings;
    int32_t training; /* 0: no gradients and no optimizer are kept; with bfloat16, matrices only in bfloat16 */
    int32_t gradient_checkpointing; /* 1: of each block only what enters it is kept, and computed again in the backward
                                       pass (Chen et al. 2016) */
    int32_t dtype; /* of the products; sums, norms, residual stream, gradients and optimizer are float32 */
    int32_t threads; /* 0: as many as physical cores */
    float dropout, norm_eps;
    int32_t optimizer; /* SAMPAN_ADAMW, or SAMPAN_MUON: that for the blocks' matrices and AdamW for the rest */
    double beta1, beta2, weight_decay, grad_clip; /* AdamW; weight decay on matrices only; grad_clip 0: none */
    double momentum, adamw_lr_ratio; /* Muon; and AdamW's learning rate beside it, as a share of Muon's */
    uint64_t seed; /* of dropout */
    const double *rotary_frequencies; /* (head_dim / 2), angle per position; copied. NULL for gpt2 */
} sampan_config;

typedef struct sampan_engine sampan_engine;
typedef struct sampan_session sampan_session;

/* A row of the parameter table: model.py's `parameters`, in its order. */
typedef struct sampan_parameter {
    const char *name; /* "h.0.attn.c_attn.weight" */
    int64_t rows, columns; /* a matrix is (out, in); a vector has columns 0 */
} sampan_parameter;

/* `message` (of `message_size` bytes) receives the sentence if this fails; *engine is NULL then. Weights are zero at
 * first. */
SAMPAN_API int32_t sampan_create(sampan_engine **engine, const sampan_config *config, char *message,
                                 int64_t message_size);
SAMPAN_API void sampan_destroy(sampan_engine *engine);
SAMPAN_API const char *sampan_error(const sampan_engine *engine);
SAMPAN_API const char *sampan_description(
    const sampan_engine *engine); /* "C on cpu (AVX-512 BF16), 2 threads, float32" */
SAMPAN_API int32_t sampan_preferred_dtype(void); /* bfloat16 where this machine multiplies it natively */

SAMPAN_API int64_t sampan_count_parameters(const sampan_engine *engine);
SAMPAN_API int32_t sampan_get_parameter(sampan_engine *engine, int64_t index, sampan_parameter *parameter);

/* Copy one tensor in or out: `what` is SAMPAN_WEIGHT, ... A gradient is read as that of the mean loss so far, and not
   written. Muon's momentum is SAMPAN_EXP_AVG; its matrices have no SAMPAN_EXP_AVG_SQ. */
SAMPAN_API int32_t sampan_read(sampan_engine *engine, int32_t what, int64_t index, float *values);
SAMPAN_API int32_t sampan_write(sampan_engine *engine, int32_t what, int64_t index, const float *values);

/* Forward and backward of x, y (batch, tokens): adds to the gradients. A target of -1 is ignored. */
SAMPAN_API int32_t sampan_accumulate(sampan_engine *engine, const int32_t *x, const int32_t *y, int64_t batch,
                                     int64_t tokens);

/* One step of the optimizer with the mean gradient of what was accumulated, clipped to grad_clip. `loss` and
   `grad_norm` (before clipping) are outputs. Where one of them is not finite, weights and moments stay as they are; the
   step counts all the same, what was accumulated is dropped, and the code is SAMPAN_NOT_FINITE, with the tensor's name
   in sampan_error. */
SAMPAN_API int32_t sampan_update(sampan_engine *engine, double learning_rate, double *loss, double *grad_norm);

/* Mean loss over the targets, without dropout; changes nothing. */
SAMPAN_API int32_t sampan_loss(sampan_engine *engine, const int32_t *x, const int32_t *y, int64_t batch, int64_t tokens,
                               double *loss);

/* Updates so far, and how many of them were applied: all others were not finite. Together with weights and moments it
 * is all that a resume needs. */
SAMPAN_API int64_t sampan_get_step(const sampan_engine *engine);
SAMPAN_API int64_t sampan_get_applied(const sampan_engine *engine);
SAMPAN_API int32_t sampan_set_step(sampan_engine *engine, int64_t step, int64_t applied);

/* Decoding with a key-value cache, for `batch` sequences of equal length. A session ends before its engine. */
SAMPAN_API int32_t sampan_session_create(sampan_session **session, sampan_engine *engine, int64_t batch);
SAMPAN_API void sampan_session_destroy(sampan_session *session);

/* Appends ids (batch, tokens); `logits` (batch, vocab_size) receives those that follow the last of them. */
SAMPAN_API int32_t sampan_session_feed(sampan_session *session, const int32_t *ids, int64_t tokens, float *logits);
SAMPAN_API int64_t sampan_session_position(const sampan_session *session); /* tokens fed so far, at most block_size */

/* FLOP/s of a 1024^3 product in the engine's precision, measured now. */
SAMPAN_API int32_t sampan_measure_peak(sampan_engine *engine, double *flops);

#endif
