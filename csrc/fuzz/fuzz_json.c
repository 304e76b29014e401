/* fuzz_json.c: any bytes as a JSON document; what comes out hangs together and costs no more than json.h says. */

#include "program/json.h"
#include "fuzz.h"

static int64_t walk(const json *doc, int64_t value) {
    const json_value *v = &doc->values[value];
    int64_t seen = 1, members = 0;
    if (v->type == JSON_STRING && v->string[v->length]) abort();
    if (v->type == JSON_ARRAY || v->type == JSON_OBJECT) {
        for (int64_t i = v->first; i; i = doc->values[i].next, members++) {
            if (v->type == JSON_OBJECT && doc->values[i].key[doc->values[i].key_length]) abort();
            seen += walk(doc, i);
        }
        if (members != v->count) abort();
    }
    return seen;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json doc;
    char *text = malloc(size + !size); /* exactly as long as it is, for the sanitizer */
    memcpy(text, data, size);
    if (!json_parse(&doc, text, (int64_t)size)) {
        if (walk(&doc, 0) != doc.count || doc.count > (int64_t)size) abort();
        json_find(&doc, 0, "n_layer");
        json_number(&doc, 0, "vocab_size", 1.0);
        json_string(&doc, 0, "model_type", "");
        json_flag(&doc, 0, "bias", 1);
    } else if (!doc.message[0]) {
        abort();
    }
    json_free(&doc);
    free(text);
    return 0;
}
