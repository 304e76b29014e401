/* parts.c: see parts.h. */

#include "parts.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "matmul/activations.h"
#include "platform/cpu.h"

/* ---- names ---- */

typedef struct name_list {
    const char *what, *names[8];
} name_list;

#define ACTIVATION_NAME(name, value, slope) #name,
#define OPTIMIZER_NAME(name, updates, moments, scratch) #name,
static const name_list NORM = {"norm", {"layernorm", "rmsnorm"}};
static const name_list POSITIONS = {"positions", {"learned", "rotary"}};
static const name_list ACTIVATION = {"activation", {ACTIVATIONS(ACTIVATION_NAME)}};
static const name_list DTYPE = {"dtype", {"auto", "float32", "bfloat16"}};
static const name_list OPTIMIZER = {"optimizer", {OPTIMIZERS(OPTIMIZER_NAME)}};
static const name_list TENSOR = {"tensor", {"weight", "gradient", "exp_avg", "exp_avg_sq"}};
_Static_assert(ACTIVATION_COUNT <= 8 && OPTIMIZER_COUNT < 8, "a list of names needs more room");

#define OPTIMIZER_KIND(name, updates, moments, scratch) {updates, moments},
const optimizer_kind OPTIMIZER_KINDS[OPTIMIZER_COUNT] = {OPTIMIZERS(OPTIMIZER_KIND)};

/* Where `name` is in the list; -1 with an error that lists the choices: "norm=x: expected layernorm or rmsnorm". */
static int32_t find_name(const name_list *list, const char *name, char *message, int64_t message_size) {
    char choices[160] = "";
    for (int32_t i = 0; list->names[i]; i++) {
        if (name && !strcmp(list->names[i], name)) return i;
        size_t used = strlen(choices);
        snprintf(choices + used, sizeof choices - used, "%s%s",
                 !i                   ? ""
                 : list->names[i + 1] ? ", "
                                      : " or ",
                 list->names[i]);
    }
    snprintf(message, (size_t)message_size, "%s=%.40s: expected %s", list->what, name ? name : "(none)", choices);
    return -1;
}

int32_t parts_find_tensor(const char *kind, char *message, int64_t message_size) {
    return find_name(&TENSOR, kind, message, message_size);
}

static int32_t parts_find_names(parts *p, const sampan_config *c, char *message, int64_t size) {
    p->norm = find_name(&NORM, c->norm, message, size);
    if (p->norm < 0) return 1;
    p->positions = find_name(&POSITIONS, c->positions, message, size);
    if (p->positions < 0) return 1;
    p->activation = find_name(&ACTIVATION, c->activation, message, size) + 1;
    if (p->activation <= 0) return 1;
    p->dtype = find_name(&DTYPE, c->dtype, message, size);
    if (p->dtype < 0) return 1;
    p->optimizer = c->optimizer ? find_name(&OPTIMIZER, c->optimizer, message, size) : OPTIMIZER_NONE;
    if (c->optimizer && p->optimizer < 0) return 1;
    if (p->dtype == DTYPE_AUTO) p->dtype = cpu_best_isa() == ISA_AVX512BF16 ? DTYPE_BFLOAT16 : DTYPE_FLOAT32;
    return 0;
}

/* ---- numbers ---- */

/* Every size is bounded so that products of a few of them, and of a batch of up to 2^31 rows, stay below 2^62. */
static const char *config_error(const sampan_config *c, const parts *p) {
    const int32_t most = 1 << 28;
    const int32_t sizes[] = {c->n_layer, c->n_head,   c->n_kv_head,  c->n_embd,
                             c->n_inner, c->head_dim, c->block_size, c->vocab_size};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i] < 1 || sizes[i] > most) return "a size is not between 1 and 2^28";
    if (c->n_layer > 1 << 16 || c->block_size > 1 << 24) return "more than 2^16 layers or 2^24 positions";
    if (c->n_head % c->n_kv_head) return "n_head is not a multiple of n_kv_head";
    if (((int64_t)c->n_head + 2 * (int64_t)c->n_kv_head) * c->head_dim > most)
        return "(n_head + 2 n_kv_head) * head_dim exceeds 2^28";
    if (p->positions == POSITIONS_ROTARY && c->head_dim % 2) return "rotary positions need an even head_dim";
    if (p->positions == POSITIONS_ROTARY && !c->rotary_frequencies) return "rotary positions need rotary_frequencies";
    if (!(c->dropout >= 0.0f && c->dropout < 1.0f)) return "dropout is not in [0, 1)";
    if (!(c->norm_eps >= 0.0f)) return "norm_eps is negative";
    if (c->threads < 0 || c->threads > 1024) return "threads is not between 1 and 1024";
    if (p->optimizer == OPTIMIZER_NONE) return NULL;
    if (!(c->beta1 >= 0 && c->beta1 < 1 && c->beta2 >= 0 && c->beta2 < 1)) return "beta1 or beta2 is not in [0, 1)";
    if (!(c->weight_decay >= 0) || !(c->grad_clip >= 0)) return "weight_decay or grad_clip is negative";
    if (!(c->momentum >= 0 && c->momentum < 1)) return "momentum is not in [0, 1)";
    if (!(c->adamw_lr_ratio >= 0)) return "adamw_lr_ratio is negative";
    return NULL;
}

int32_t parts_read(parts *p, const sampan_config *c, char *message, int64_t message_size) {
    if (c->struct_size != (int64_t)sizeof *c) {
        snprintf(message, (size_t)message_size, "the library and its caller are of different versions");
        return 1;
    }
    if (parts_find_names(p, c, message, message_size)) return 1;
    const char *error = config_error(c, p);
    if (error) snprintf(message, (size_t)message_size, "%s", error);
    return error != NULL;
}
