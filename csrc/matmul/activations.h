/* activations.h: the activations of the MLP, one row each: its name (Hugging Face's), its value and its slope.

   Both are expressions of x. activations.inc makes functions of them: on vectors of floats for the kernels and the ops,
   on doubles for the reference. They may use SIGMOID(x) = 1 / (1 + e^-x), POSITIVE(x) = max(x, 0) and NUMBER(constant).
   A new activation is a new row here; forward, backward, evaluation and decoding follow. */

#ifndef SAMPAN_ACTIVATIONS_H
#define SAMPAN_ACTIVATIONS_H

// clang-format off
#define ACTIVATIONS(X) \
    /*name      value                        slope */ \
    X(gelu_new, x * SIGMOID(GELU_LOGIT),     SIGMOID(GELU_LOGIT) + x * SIGMOID_SLOPE(GELU_LOGIT) * GELU_LOGIT_SLOPE) \
    X(silu,     x * SIGMOID(x),              SIGMOID(x) + x * SIGMOID_SLOPE(x)) \
    X(relu2,    POSITIVE(x) * POSITIVE(x),   NUMBER(2) * POSITIVE(x))
// clang-format on

#define SIGMOID_SLOPE(x) (SIGMOID(x) * (NUMBER(1) - SIGMOID(x)))

/* x (1 + tanh(u)) / 2 = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3): the logit is 2 u */
#define GELU_LOGIT (x * (NUMBER(1.5957691216057308) + NUMBER(0.07135481627260025) * (x * x)))
#define GELU_LOGIT_SLOPE (NUMBER(1.5957691216057308) + NUMBER(0.21406444881780074) * (x * x))

#define ACTIVATION_NUMBER(name, value, slope) ACTIVATION_##name,
enum { ACTIVATION_NONE, ACTIVATIONS(ACTIVATION_NUMBER) ACTIVATION_COUNT };

#endif
