/* optimizers.h: the table of optimizers. A new one is a row here and a function NAME_update in adamw.inc, muon.inc or a
   file beside them; engine/ and the public interface find it by this table.

   X(name, updates, moments, scratch)

   updates   UPDATES_ALL: every parameter, which all threads share; UPDATES_MATRICES: each matrix of a block, by one
             thread. AdamW then updates the rest, with adamw_lr_ratio of the learning rate.
   moments   what it keeps of a parameter: 1, exp_avg; 2, exp_avg and exp_avg_sq
   scratch   floats for a matrix (R, C) whose smaller side is S */

#ifndef SAMPAN_OPTIMIZERS_H
#define SAMPAN_OPTIMIZERS_H

// clang-format off
#define OPTIMIZERS(X) \
    X(adamw, UPDATES_ALL,      2, 0) \
    X(muon,  UPDATES_MATRICES, 1, 2 * (R * C + S * S))
// clang-format on

enum { UPDATES_ALL, UPDATES_MATRICES };

#define OPTIMIZER_NUMBER(name, updates, moments, scratch) OPTIMIZER_##name,
enum { OPTIMIZER_NONE = -1, OPTIMIZERS(OPTIMIZER_NUMBER) OPTIMIZER_COUNT };

#endif
