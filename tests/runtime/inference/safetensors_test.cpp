#include "runtime/inference/safetensors.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "runtime/base/limits.h"
#include "runtime/inference/llama_model.h"
#include "tests/support/random_llama.h"

using namespace mainstay;

namespace {

namespace fs = std::filesystem;

/// A directory that goes away with its test.
struct Directory {
    fs::path path;
    Directory() {
        std::string name = (fs::temp_directory_path() / "mainstay_safetensors_XXXXXX").string();
        REQUIRE(mkdtemp(name.data()));
        path = name;
    }
    ~Directory() { fs::remove_all(path); }
    void write(const std::string& name, const std::string& bytes) const {
        std::ofstream(path / name, std::ios::binary) << bytes;
    }
};

std::string file_of(const std::string& header, size_t data_bytes) {
    std::string out(8, '\0');
    const uint64_t length = header.size();
    std::memcpy(out.data(), &length, 8);
    return out + header + std::string(data_bytes, '\1');
}

Result<SafetensorsHeader> parse(const std::string& file) { return parse_safetensors_header(file, file.size()); }

std::string entry(const std::string& type, const std::string& shape, uint64_t begin, uint64_t end) {
    return "{\"dtype\":\"" + type + "\",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(begin) + "," +
           std::to_string(end) + "]}";
}

}  // namespace

TEST_CASE("safetensors: a good header gives each tensor its type, shape and place") {
    const auto header =
        parse(file_of("{\"__metadata__\":{\"format\":\"pt\"},\"b\":" + entry("BF16", "2,3", 8, 20) +
                          ",\"a\":" + entry("F32", "2", 0, 8) + ",\"none\":" + entry("F16", "0,5", 20, 20) +
                          ",\"i\":" + entry("I8", "", 20, 21) + "}  ",
                      21));
    REQUIRE(header.ok());
    CHECK(header->tensors.size() == 4);
    CHECK(header->tensors.at("b").type == TensorType::bf16);
    CHECK(header->tensors.at("b").shape == std::vector<uint64_t>{2, 3});
    CHECK(header->tensors.at("a").begin == 0);
    CHECK(header->tensors.at("i").type == TensorType::other);
}

TEST_CASE("safetensors: a damaged, truncated or dishonest header is refused, and names the tensor") {
    const std::string a = "{\"a\":" + entry("F32", "2", 0, 8) + "}";
    const auto huge = std::to_string(UINT64_MAX);
    const std::tuple<std::string, std::string, std::string> cases[] = {
        {"", "8 bytes", ""},
        {"1234567", "8 bytes", ""},
        {std::string(8, '\xff'), "bound", ""},
        {file_of(a, 8).substr(0, 20), "truncated", ""},
        {file_of(a, 7), "truncated", "a"},
        {file_of(a, 9), "belong to no tensor", ""},
        {file_of("[]", 0), "no JSON object", ""},
        {file_of("{\"a\":", 0), "JSON", ""},
        {file_of(std::string(100, '[') + std::string(100, ']'), 0), "JSON", ""},
        {file_of("{\"a\":1}", 0), "no object", "a"},
        {file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8), "data_offsets is missing", "a"},
        {file_of("{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8), "dtype is missing", "a"},
        {file_of("{\"a\":" + entry("F31", "2", 0, 8) + "}", 8), "unknown dtype", "a"},
        {file_of("{\"a\":" + entry("F32", "3", 0, 8) + "}", 8), "8 bytes", "a"},
        {file_of("{\"a\":" + entry("F32", "-2", 0, 8) + "}", 8), "natural", "a"},
        {file_of("{\"a\":" + entry("F32", "1.5", 0, 8) + "}", 8), "natural", "a"},
        {file_of("{\"a\":" + entry("F32", huge + "," + huge, 0, 8) + "}", 8), "larger", "a"},
        {file_of("{\"a\":" + entry("F32", "4294967296,4294967296", 0, 0) + "}", 0), "larger", "a"},
        {file_of("{\"a\":" + entry("F32", "1,1,1,1,1,1,1,1,2", 0, 8) + "}", 8), "dimensions", "a"},
        {file_of("{\"a\":" + entry("F32", "2", 8, 0) + "}", 8), "before they begin", "a"},
        {file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}", 8), "unknown key", "a"},
        {file_of("{\"a\":" + entry("F32", "2", 0, 8) + ",\"b\":" + entry("F32", "2", 4, 12) + "}", 12), "overlaps",
         "b"},
        {file_of("{\"a\":" + entry("F32", "2", 0, 8) + ",\"b\":" + entry("F32", "2", 12, 20) + "}", 20), "hole", "b"},
        {file_of("{\"" + std::string(600, 'n') + "\":" + entry("F32", "2", 0, 8) + "}", 8), "longer than", ""},
    };
    for (const auto& [file, reason, tensor] : cases) {
        INFO(file.substr(0, 200));
        const auto header = parse(file);
        REQUIRE(!header.ok());
        CHECK(header.error().code == ErrorCode::model_not_loadable);
        CHECK_MESSAGE(header.error().message.find(reason) != std::string::npos, header.error().message);
        CHECK(header.error().param == tensor);
    }
}

TEST_CASE("safetensors: shards with an index are one model, and an index that lies is refused") {
    Directory directory;
    directory.write("one.safetensors", file_of("{\"a\":" + entry("F32", "2", 0, 8) + "}", 8));
    directory.write("two.safetensors", file_of("{\"b\":" + entry("BF16", "2,2", 0, 8) + "}", 8));
    const auto index = [&](const std::string& map) {
        directory.write("model.safetensors.index.json", "{\"metadata\":{},\"weight_map\":{" + map + "}}");
        return Safetensors::open(directory.path.string());
    };
    auto good = index(R"("a":"one.safetensors","b":"two.safetensors")");
    REQUIRE(good.ok());
    CHECK(good->names() == std::vector<std::string_view>{"a", "b"});
    const auto b = good->find("b", 2, 2);
    REQUIRE(b.ok());
    float row[2];
    b->read_row(1, row);
    CHECK(row[0] == float_of_bf16(0x0101));
    CHECK(good->find("b", 2, 3).error().param == "b");
    CHECK(good->find("c", 2, 3).error().message.find("missing") != std::string::npos);

    const std::pair<std::string, std::string> bad[] = {
        {R"("a":"one.safetensors","b":"one.safetensors")", "b"},
        {R"("a":"one.safetensors","z":"two.safetensors")", "z"},
        {R"("a":"../one.safetensors")", "a"},
        {R"("a":"/etc/passwd")", "a"},
        {R"("a":7)", "a"},
        {R"("a":"three.safetensors")", ""},
    };
    for (const auto& [map, tensor] : bad) {
        INFO(map);
        const auto opened = index(map);
        REQUIRE(!opened.ok());
        CHECK(opened.error().param == tensor);
    }
    directory.write("three.safetensors", file_of("{\"a\":" + entry("F32", "2", 0, 8) + "}", 8));
    CHECK(index(R"("a":"one.safetensors","b":"three.safetensors")").error().message.find("another file") !=
          std::string::npos);
    directory.write("model.safetensors.index.json", "{}");
    CHECK(Safetensors::open(directory.path.string()).error().param == "weight_map");
}

constexpr uint64_t enough = 64 << 20;

TEST_CASE("llama model: what is missing, unexpected, misshapen or too large is refused by name") {
    Directory directory;
    const LlamaConfig shape = llama_shape(32, 48, 1, 2, 2, 40, false);
    const std::string where = directory.path.string();
    const auto refused = [&](uint64_t memory = enough) {
        const auto model = LlamaModel::load(where, Precision::bf16, memory);
        REQUIRE(!model.ok());
        CHECK(model.error().code == ErrorCode::model_not_loadable);
        return model.error();
    };
    CHECK(refused().message.find("config.json") != std::string::npos);
    RandomLlama(shape, RandomLlama::Type::f32, 1).write(directory.path);
    const auto model = LlamaModel::load(where, Precision::bf16, enough);
    REQUIRE(model.ok());

    // The hash is of the weights and of what is computed with them.
    RandomLlama(shape, RandomLlama::Type::f32, 2).write(directory.path);
    CHECK(LlamaModel::load(where, Precision::bf16, enough).value()->hash() != (*model)->hash());
    RandomLlama(shape, RandomLlama::Type::f32, 1).write(directory.path);
    CHECK(LlamaModel::load(where, Precision::f32, enough).value()->hash() == (*model)->hash());

    CHECK(refused(1000).param == "memory");

    LlamaConfig other = shape;
    const auto with_config = [&](auto change) {
        other = shape;
        change(other);
        directory.write("config.json", RandomLlama(other, RandomLlama::Type::f32, 1).config_json());
        return refused();
    };
    CHECK(with_config([](LlamaConfig& c) { c.num_hidden_layers = 2; }).param ==
          "model.layers.1.self_attn.q_proj.weight");
    CHECK(with_config([](LlamaConfig& c) { c.vocab_size = 41; }).param == "model.embed_tokens.weight");
    CHECK(with_config([](LlamaConfig& c) { c.num_key_value_heads = 1; }).param ==
          "model.layers.0.self_attn.k_proj.weight");
    CHECK(with_config([](LlamaConfig& c) { c.intermediate_size = 32; }).message.find("[48 x 32]") != std::string::npos);

    // Two layers where the configuration describes one: arithmetic that would be left out.
    other.num_hidden_layers = 2;
    other = llama_shape(32, 48, 2, 2, 2, 40, false);
    RandomLlama(other, RandomLlama::Type::f32, 1).write(directory.path);
    directory.write("config.json", RandomLlama(shape, RandomLlama::Type::f32, 1).config_json());
    CHECK(refused().message.find("belongs to nothing") != std::string::npos);

    // Cut short at every hundredth byte: refused, never read beyond.
    RandomLlama(shape, RandomLlama::Type::bf16, 1).write(directory.path);
    const auto size = fs::file_size(directory.path / "model.safetensors");
    for (auto left = size - 1; left > 100; left -= 100 + left / 10) {
        fs::resize_file(directory.path / "model.safetensors", left);
        refused();
    }
    fs::resize_file(directory.path / "model.safetensors", 0);
    refused();
}
