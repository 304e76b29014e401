/* fuzz_api.c: calls of sampan.h in any order with any arguments that a caller's mistake could give: sizes that are
   absurd, negative or overflow together, ids outside of the vocabulary, steps, indices and kinds that there are not,
   missing pointers. Arrays are as long as the header says; where a size is refused they are one element long, and must
   not be looked at. */

#include <math.h>
#include "ops/optimizers.h"
#include "sampan.h"
#include "fuzz.h"
#include "tests/check.h"

enum { ROOM = 4096 };

/* Mostly small; sometimes at an edge. */
static int64_t take_size(input *in) {
    static const int64_t edges[] = {0,
                                    -1,
                                    INT32_MAX,
                                    INT32_MIN,
                                    INT64_MAX,
                                    INT64_MIN,
                                    1 << 28,
                                    (1 << 28) + 1,
                                    1 << 24,
                                    1 << 16,
                                    (1 << 16) + 1,
                                    (int64_t)1 << 32,
                                    ((int64_t)1 << 62) + 1,
                                    1 << 20,
                                    1000,
                                    64};
    uint8_t byte = take(in);
    return byte < 0xc0 ? byte % 12 : edges[byte % 16];
}

static double take_real(input *in) {
    static const double reals[] = {0.0, 1e-3, 1.0, -1.0, 1e30, 1e300, 1e-300, INFINITY, -INFINITY, NAN, 0.9, 0.5};
    return reals[take(in) % (sizeof reals / sizeof *reals)];
}

/* One of the names, or none of them. */
static const char *take_name(input *in, const char *const *names, int32_t count) {
    uint8_t byte = take(in);
    return byte < 0xf8 ? names[byte % count] : byte == 0xf8 ? NULL : byte == 0xf9 ? "" : "a name that no list has";
}

static sampan_config take_config(input *in) {
    static const char *const norms[] = {"layernorm", "rmsnorm"}, *const positions[] = {"learned", "rotary"};
#define OPTIMIZER_TEXT(name, updates, moments, scratch) #name,
    static const char *const activations[] = {"gelu_new", "silu", "relu2"}, *const optimizers[] = {
                                                                                OPTIMIZERS(OPTIMIZER_TEXT)};
    static const char *const dtypes[] = {"float32", "bfloat16", "auto"};
    static double frequencies[512];
    for (int32_t i = 0; i < 512; i++) frequencies[i] = pow(10000.0, -i / 16.0);
    int32_t head_dim = 2 * (1 + take(in) % 4), n_head = 1 + take(in) % 4, halves = n_head % 2 == 0 && take(in) % 2;
    int32_t n_layer = 1 + take(in) % 3, n_inner = 1 + take(in) % 40, block_size = 1 + take(in) % 20;
    sampan_config c = example_config(n_layer, n_head, halves ? n_head / 2 : n_head, head_dim, n_inner, block_size,
                                     1 + take(in) % 40);
    c.norm = take_name(in, norms, 2);
    c.positions = take_name(in, positions, 2);
    c.activation = take_name(in, activations, 3);
    c.dtype = take_name(in, dtypes, 3);
    c.optimizer = take(in) % 2 ? take_name(in, optimizers, OPTIMIZER_COUNT) : NULL;
    c.rotary_frequencies = frequencies;
    int32_t *const flags[] = {&c.gated,
                              &c.qk_norm,
                              &c.qkv_bias,
                              &c.attn_proj_bias,
                              &c.mlp_bias,
                              &c.norm_bias,
                              &c.tie_word_embeddings,
                              &c.gradient_checkpointing,
                              &c.document_mask};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) *flags[i] = take(in) % 2;
    c.threads = 1 + (take(in) % 8 == 0);
    for (int32_t changes = take(in) % 4; changes > 0; changes--) {
        int32_t *const sizes[] = {&c.n_layer,
                                  &c.n_head,
                                  &c.n_kv_head,
                                  &c.n_embd,
                                  &c.n_inner,
                                  &c.head_dim,
                                  &c.block_size,
                                  &c.vocab_size,
                                  &c.threads,
                                  &c.gated,
                                  &c.gradient_checkpointing,
                                  &c.end_of_text};
        double *const reals[] = {&c.beta1, &c.beta2, &c.weight_decay, &c.grad_clip, &c.momentum, &c.adamw_lr_ratio};
        enum { SIZES = sizeof sizes / sizeof *sizes, REALS = sizeof reals / sizeof *reals };
        uint8_t which = take(in) % (SIZES + REALS + 4);
        if (which < SIZES) *sizes[which] = (int32_t)take_size(in);
        else if (which < SIZES + REALS) *reals[which - SIZES] = take_real(in);
        else if (which == SIZES + REALS) c.dropout = (float)take_real(in);
        else if (which == SIZES + REALS + 1) c.norm_eps = (float)take_real(in);
        else if (which == SIZES + REALS + 2) c.rotary_frequencies = NULL;
        else c.struct_size = take_size(in);
    }
    if (c.block_size > 1 << 16 && c.block_size <= 1 << 24) c.block_size = 1 << 16; /* allowed, and seconds of cosines */
    if (c.head_dim > 1024) c.rotary_frequencies = NULL; /* or it would be shorter than the header asks */
    return c;
}

/* `count` ids, exactly as many as the array holds; most are of the vocabulary. */
static int32_t *take_ids(input *in, int64_t count, int32_t vocab_size, int32_t lowest) {
    int32_t *ids = malloc((size_t)count * sizeof *ids);
    for (int64_t i = 0; i < count; i++) {
        uint8_t byte = take(in);
        ids[i] = byte < 0xfa    ? byte % vocab_size
                 : byte == 0xfa ? lowest
                 : byte == 0xfb ? lowest - 1
                 : byte == 0xfc ? vocab_size
                 : byte == 0xfd ? INT32_MAX
                 : byte == 0xfe ? INT32_MIN
                                : 0;
    }
    return ids;
}

/* Elements of an array for a batch; 1 where the engine must refuse the sizes, 0 where the array would be too large for
 * here. */
static int64_t batch_room(int64_t batch, int64_t tokens, int64_t most_tokens) {
    if (batch < 1 || tokens < 1 || tokens > most_tokens || batch > INT32_MAX / tokens) return 1;
    return batch * tokens <= ROOM ? batch * tokens : 0;
}

static void call_batch(sampan_engine *e, const sampan_config *c, input *in, int32_t trains) {
    int64_t batch = take_size(in), tokens = take_size(in), room = batch_room(batch, tokens, c->block_size);
    double loss;
    if (!room) return;
    int32_t *x = take_ids(in, room, c->vocab_size, 0), *y = take_ids(in, room, c->vocab_size, -1);
    float *losses = malloc((size_t)room * sizeof *losses);
    uint8_t missing = take(in);
    if (trains) sampan_accumulate(e, missing == 0xff ? NULL : x, missing == 0xfe ? NULL : y, batch, tokens);
    else
        sampan_loss(e, missing == 0xff ? NULL : x, missing == 0xfe ? NULL : y, batch, tokens,
                    missing == 0xfd ? NULL : &loss, missing & 1 ? losses : NULL);
    free(x);
    free(y);
    free(losses);
}

static void call_tensor(sampan_engine *e, input *in) {
    int64_t index = take_size(in);
    static const char *const kinds[] = {"weight", "gradient", "exp_avg", "exp_avg_sq"};
    const char *what = take_name(in, kinds, 4);
    int32_t writes = take(in) % 2;
    sampan_parameter p;
    int64_t size = 1;
    if (!sampan_get_parameter(e, index, &p)) size = p.rows * (p.columns ? p.columns : 1);
    if (size > ROOM) return;
    float *values = malloc((size_t)size * sizeof(float)), fill = (float)take_real(in);
    for (int64_t i = 0; i < size; i++) values[i] = fill * (float)(i % 7 - 3);
    if (writes) sampan_write(e, what, index, take(in) == 0xff ? NULL : values);
    else sampan_read(e, what, index, take(in) == 0xff ? NULL : values);
    free(values);
}

static void call_session(sampan_engine *e, const sampan_config *c, input *in) {
    sampan_session *s;
    int64_t batch = take_size(in);
    if (batch > 64 && batch <= 1 << 20) batch = 64;
    if (sampan_session_create(&s, e, batch)) return;
    float *logits = malloc((size_t)(batch * c->vocab_size) * sizeof(float));
    for (int32_t calls = take(in) % 6; calls > 0; calls--) {
        int32_t slots[64];
        int64_t count = 0;
        for (int32_t slot = 0; slot < batch && slot < 64; slot++)
            if (take(in) % 2) slots[count++] = slot;
        if (count && take(in) % 4 == 0) slots[count - 1] = take(in); /* perhaps none, or not ascending */
        if (take(in) % 4 == 0) sampan_session_clear(s, take(in));
        int64_t tokens = take_size(in), room = batch_room(count, tokens, c->block_size);
        if (!room) continue;
        int32_t *ids = take_ids(in, room, c->vocab_size, 0);
        uint8_t missing = take(in);
        sampan_session_feed(s, missing == 0xfd ? NULL : slots, count, missing == 0xff ? NULL : ids, tokens,
                            missing == 0xfe ? NULL : logits);
        free(ids);
    }
    for (int64_t slot = 0; slot < batch; slot++)
        if (sampan_session_position(s, slot) > c->block_size) abort();
    free(logits);
    sampan_session_destroy(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, data + size};
    sampan_config c = take_config(&in);
    sampan_engine *e;
    sampan_memory_sizes sizes;
    char message[64] = "";
    int64_t message_size = take(&in) % 65;
    int64_t batch = take_size(&in), tokens = take_size(&in);
    if (!sampan_memory(&c, batch, tokens, &sizes, message, message_size)
        && (sizes.weights < 0 || sizes.activations < 0))
        abort();
    int32_t code = sampan_create(&e, &c, take(&in) == 0xff ? NULL : message, message_size);
    if (code) {
        if (e) abort();
        return 0;
    }
    if ((int64_t)c.vocab_size * c.n_embd + (int64_t)c.n_embd * c.n_inner < 1 << 16)
        for (int32_t calls = take(&in) % 12; calls > 0; calls--) {
            double loss, norm;
            const char *refused;
            uint8_t which = take(&in) % 8;
            if (which < 2) call_batch(e, &c, &in, 1);
            else if (which == 2) call_batch(e, &c, &in, 0);
            else if (which == 3) sampan_update(e, take_real(&in), take(&in) == 0xff ? NULL : &loss, &norm, &refused);
            else if (which == 4) call_tensor(e, &in);
            else if (which == 5) {
                int64_t step = take_size(&in), applied = take_size(&in);
                sampan_set_step(e, step, applied);
            } else call_session(e, &c, &in);
        }
    if (sampan_get_step(e) < 0) abort();
    sampan_destroy(e);
    return 0;
}
