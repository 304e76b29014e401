/* sampan.h: the C engine's whole public interface. It trains and runs GPTs that are made of the parts named below.

       sampan_config config = {.struct_size = sizeof config, .n_layer = 4, ..., .norm = "layernorm", .dtype = "auto",
                               .positions = "learned", .activation = "gelu_new", .optimizer = "adamw", ...};
       char message[256];
       sampan_engine *engine;
       if (sampan_create(&engine, &config, message, sizeof message)) { puts(message); ... }
       for each parameter i: sampan_write(engine, "weight", i, values);
       sampan_accumulate(engine, x, y, batch, tokens);          // as often as there are micro-batches
       sampan_update(engine, learning_rate, &loss, &grad_norm, &refused);
       sampan_destroy(engine);

   A function returns SAMPAN_OK or another code, and then sampan_error(engine) says what was wrong. Nothing here prints,
   exits or keeps global state. One thread at a time may use an engine and its sessions; two engines are independent.

   What it does not do: files, tokenizers, batches, schedules, sampling, initial weights. Those are its callers'. */

#ifndef SAMPAN_H
#define SAMPAN_H

#include <stdint.h>

#ifdef _WIN32
#define SAMPAN_API __declspec(dllexport)
#else
#define SAMPAN_API __attribute__((visibility("default")))
#endif

enum { SAMPAN_OK = 0, SAMPAN_BAD_ARGUMENT = 1, SAMPAN_NO_MEMORY = 2, SAMPAN_NO_THREADS = 3 };

/* A model's parts and sizes, and how it is run. Every size is resolved (no "auto"). Texts and arrays are only read
   by sampan_create, and need not outlive it. An unknown name is refused with a message that lists the choices. */
typedef struct sampan_config {
    int64_t struct_size; /* sizeof(sampan_config): a caller built for another version is refused */
    int32_t n_layer, n_head, n_kv_head, n_embd, n_inner, head_dim, block_size, vocab_size;
    const char *norm;       /* "layernorm" | "rmsnorm" */
    const char *positions;  /* "learned" (added to the embedding) | "rotary" (turns queries and keys) */
    const char *activation; /* of the MLP: "gelu_new" | "silu" | "relu2" */
    int32_t gated;          /* 1: the MLP is activation(gate) * up, gate and up in one c_fc matrix */
    int32_t qk_norm;        /* 1: each head's queries and keys are RMS-normalized */
    int32_t qkv_bias, attn_proj_bias, mlp_bias, norm_bias;
    int32_t tie_word_embeddings;
    float dropout, norm_eps;
    const double *rotary_frequencies; /* (head_dim / 2), angle per position; NULL unless rotary */
    const char *dtype;                /* of the products: "auto" | "float32" | "bfloat16"; all else is float32 */
    int32_t threads;                  /* 0: OMP_NUM_THREADS, else the physical cores that the process may use */
    const char
        *optimizer; /* "adamw" | "muon" (AdamW for what is no matrix of a block): ops/optimizers.h; NULL: no training */
    double beta1, beta2, weight_decay, grad_clip; /* AdamW; weight decay on matrices only; grad_clip 0: none */
    double momentum, adamw_lr_ratio;              /* Muon; and AdamW's learning rate beside it, as a share of Muon's */
    int32_t gradient_checkpointing; /* 1: keep only each block's input, and compute the rest again (Chen et al. 2016) */
    int32_t document_mask;          /* 1: in batches, attention sees nothing before the last end of text */
    int32_t end_of_text;            /* that token, which begins a document */
    uint64_t seed;                  /* of dropout */
} sampan_config;

typedef struct sampan_engine sampan_engine;
typedef struct sampan_session sampan_session;

/* A row of the parameter table: the package's `parameters`, in the same order. */
typedef struct sampan_parameter {
    const char *name;      /* "h.0.attn.c_attn.weight" */
    int64_t rows, columns; /* a matrix is (out, in); a vector has columns 0 */
} sampan_parameter;

/* Bytes. The first three of an engine, `activations` of its passes, `cache` of a session. */
typedef struct sampan_memory_sizes {
    int64_t weights, gradients, optimizer, activations, cache;
} sampan_memory_sizes;

/* `message` (of `message_size` bytes) receives the error; *engine is NULL then. Weights are zero at first. */
SAMPAN_API int32_t sampan_create(sampan_engine **engine, const sampan_config *config, char *message,
                                 int64_t message_size);
SAMPAN_API void sampan_destroy(sampan_engine *engine);
SAMPAN_API const char *sampan_error(const sampan_engine *engine);
SAMPAN_API const char *sampan_description(const sampan_engine *engine); /* "C on cpu (AVX2), 2 threads, float32" */

/* Counts what an engine of this configuration would allocate for passes of `batch` sequences of `tokens` tokens, and
   for a session of `batch` sequences. Allocates none of it. */
SAMPAN_API int32_t sampan_memory(const sampan_config *config, int64_t batch, int64_t tokens, sampan_memory_sizes *sizes,
                                 char *message, int64_t message_size);

SAMPAN_API int64_t sampan_count_parameters(const sampan_engine *engine);
SAMPAN_API int32_t sampan_get_parameter(sampan_engine *engine, int64_t index, sampan_parameter *parameter);

/* Copy one tensor out or in: `kind` is "weight", "gradient" (read only: that of the mean loss so far), "exp_avg" (also
   Muon's momentum) or "exp_avg_sq" (Muon's matrices have none). */
SAMPAN_API int32_t sampan_read(sampan_engine *engine, const char *kind, int64_t index, float *values);
SAMPAN_API int32_t sampan_write(sampan_engine *engine, const char *kind, int64_t index, const float *values);

/* Forward and backward of x, y (batch, tokens): adds to the gradients. A target of -1 is ignored. */
SAMPAN_API int32_t sampan_accumulate(sampan_engine *engine, const int32_t *x, const int32_t *y, int64_t batch,
                                     int64_t tokens);

/* One step of the optimizer with the mean gradient of what was accumulated, clipped to grad_clip. `loss` and
   `grad_norm` (before clipping) are outputs. Where one of them is NaN or infinite the step is refused: weights and
   moments stay as they are, the step counts, what was accumulated is dropped, and *refused says which tensor it was
   (until the next call); else *refused is NULL. */
SAMPAN_API int32_t sampan_update(sampan_engine *engine, double learning_rate, double *loss, double *grad_norm,
                                 const char **refused);

/* Mean loss over the targets, without dropout; changes nothing. `losses`, unless NULL, gets the loss of each target, 0
   where it is -1: batch * tokens floats. */
SAMPAN_API int32_t sampan_loss(sampan_engine *engine, const int32_t *x, const int32_t *y, int64_t batch, int64_t tokens,
                               double *loss, float *losses);

/* Updates so far, and how many were applied (the others were refused). A resume needs these, weights and moments. */
SAMPAN_API int64_t sampan_get_step(const sampan_engine *engine);
SAMPAN_API int64_t sampan_get_applied(const sampan_engine *engine);
SAMPAN_API int32_t sampan_set_step(sampan_engine *engine, int64_t step, int64_t applied);

/* Decoding with a key-value cache that has slots for so many sequences. A session ends before its engine. */
SAMPAN_API int32_t sampan_session_create(sampan_session **session, sampan_engine *engine, int64_t slots);
SAMPAN_API void sampan_session_destroy(sampan_session *session);

/* Appends ids (count, tokens) to the sequences in `slots` (count; NULL: the first), ascending and of any lengths; `logits` (count,
   vocab_size) receives those that follow the last of them. A sequence's logits have the same bits whatever is fed beside
   it. */
SAMPAN_API int32_t sampan_session_feed(sampan_session *session, const int32_t *slots, int64_t count, const int32_t *ids,
                                       int64_t tokens, float *logits);
SAMPAN_API int32_t sampan_session_clear(sampan_session *session, int64_t slot);          /* forgets its tokens */
SAMPAN_API int64_t sampan_session_position(const sampan_session *session, int64_t slot); /* tokens fed, or -1 */

/* FLOP/s of a 1024^3 product in the engine's precision, measured now. */
SAMPAN_API int32_t sampan_measure_peak(sampan_engine *engine, double *flops);

#endif
