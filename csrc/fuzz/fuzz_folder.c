/* fuzz_folder.c: any bytes as config.json and model.safetensors; a model that they describe is made, loaded and run. */

#include "program/folder.h"
#include "fuzz.h"
#include "tests/check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, data + size}, config_json = take_first(&in);
    failure failure = {0};
    double *frequencies;
    const family *family;
    sampan_engine *engine;
    sampan_config config = example_config(1, 1, 1, 1, 1, 1, 1);
    if (size & 1) config.optimizer = NULL;
    fuzz_write("config.json", config_json);
    fuzz_write("model.safetensors", in);
    if (folder_read_config(&config, &family, &frequencies, fuzz_folder, &failure)) {
        if (!failure.text[0]) abort();
    } else if (!sampan_create(&engine, &config, failure.text, sizeof failure.text)) {
        if (!folder_load_weights(engine, family, &config, fuzz_folder, &failure)) {
            int32_t ids[2] = {0, config.vocab_size - 1};
            double loss;
            sampan_loss(engine, ids, ids, 1, config.block_size > 1 ? 2 : 1, &loss, NULL);
        }
        sampan_destroy(engine);
    }
    free(frequencies);
    return 0;
}
