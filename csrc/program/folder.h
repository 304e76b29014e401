/* folder.h: a model's folder as Hugging Face lays it out: config.json and model.safetensors, of the gpt2, llama and
   qwen3 families.

       sampan_config config = {0};                       // then: training, dtype, threads, ... as the caller likes
       double *frequencies;                              // to be freed
       if (folder_read_config(&config, &frequencies, "out/shakespeare", message, size)) ...
       ...sampan_create()...
       if (folder_load_weights(engine, &config, "out/shakespeare", message, size)) ...

   What it does not do: sharded weights, rope_scaling, pickles, config.json of other programs' dialects (checkpoint.py
   reads more). */

#ifndef SAMPAN_FOLDER_H
#define SAMPAN_FOLDER_H

#include <stdint.h>
#include "sampan.h"

/* Each returns 0, or 1 with a sentence in `message`. */
int32_t folder_read_config(sampan_config *config, double **frequencies, const char *folder, char *message,
                           int64_t message_size);
int32_t folder_load_weights(sampan_engine *engine, const sampan_config *config, const char *folder, char *message,
                            int64_t message_size);

/* Replaces model.safetensors at once: written beside, synced, renamed. */
int32_t folder_save_weights(sampan_engine *engine, const sampan_config *config, const char *folder, char *message,
                            int64_t message_size);

#endif
