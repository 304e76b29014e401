/* folder.h: a model's folder as Hugging Face lays it out, config.json and model.safetensors, of the package's families.

       sampan_config config = {0};                       // then: optimizer, dtype, threads, ... as the caller likes
       const family *family;
       double *frequencies;                              // to be freed
       if (folder_read_config(&config, &family, &frequencies, "out/shakespeare", &failure)) ...
       ...sampan_create()...
       if (folder_load_weights(engine, family, &config, "out/shakespeare", &failure)) ...

   Names, keys and parts are those of families.inc, which generate.py writes from the package's families.

   What it does not do: sharded weights, pickles (the package reads more). */

#ifndef SAMPAN_FOLDER_H
#define SAMPAN_FOLDER_H

#include <stdint.h>
#include "platform/file.h"
#include "sampan.h"

typedef struct family family;

/* The family of that model_type, or NULL. */
const family *folder_find_family(const char *model_type);

/* Sets the parts of `config` to the family's; `bias` 1: with its biases. */
void folder_set_parts(sampan_config *config, const family *family, int32_t bias);

/* Each returns 0, or 1 with a failure. */
int32_t folder_read_config(sampan_config *config, const family **family, double **frequencies, const char *folder,
                           failure *failure);
int32_t folder_save_config(const sampan_config *config, const family *family, int32_t end_of_text, const char *folder,
                           failure *failure); /* end_of_text -1: none */
int32_t folder_load_weights(sampan_engine *engine, const family *family, const sampan_config *config,
                            const char *folder, failure *failure);

/* Replaces model.safetensors atomically: a new file is written, synced and renamed. */
int32_t folder_save_weights(sampan_engine *engine, const family *family, const sampan_config *config,
                            const char *folder, failure *failure);

#endif
