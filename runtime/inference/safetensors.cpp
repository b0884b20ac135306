#include "runtime/inference/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <set>

#include "runtime/base/limits.h"
#include "runtime/inference/kernels.h"

namespace mainstay {

namespace {

namespace json = boost::json;

Error damaged(std::string why, std::string_view tensor = {}) {
    return {ErrorCode::model_not_loadable, std::move(why), std::string(tensor)};
}

/// Bits of one element; 0: a type that the format does not have.
uint32_t bits_of(std::string_view type) {
    static constexpr std::pair<std::string_view, uint32_t> types[] = {
        {"F64", 64},  {"I64", 64}, {"U64", 64}, {"C64", 64}, {"F32", 32},    {"I32", 32},    {"U32", 32},
        {"BF16", 16}, {"F16", 16}, {"I16", 16}, {"U16", 16}, {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8},
        {"I8", 8},    {"U8", 8},   {"BOOL", 8}, {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6}};
    for (const auto& [name, bits] : types)
        if (name == type) return bits;
    return 0;
}

TensorType type_of(std::string_view type) {
    if (type == "F32") return TensorType::f32;
    if (type == "BF16") return TensorType::bf16;
    if (type == "F16") return TensorType::f16;
    return TensorType::other;
}

Result<json::value> parse_json(std::string_view text, const std::string& what) {
    json::error_code failed;
    json::parse_options options;
    options.max_depth = limits::json_depth_max;
    json::value root = json::parse(text, failed, {}, options);
    if (failed) return damaged(what + ": no valid JSON: " + failed.message());
    if (!root.is_object()) return damaged(what + ": no JSON object");
    return root;
}

std::optional<uint64_t> natural(const json::value& value) {
    if (value.is_uint64()) return value.get_uint64();
    if (value.is_int64() && value.get_int64() >= 0) return uint64_t(value.get_int64());
    return std::nullopt;
}

constexpr uint64_t file_bytes_max = uint64_t(1) << 60;  // so that bits do not overflow

Result<TensorInfo> read_tensor(std::string_view name, const json::value& value) {
    const auto bad = [&](const std::string& why) {
        return damaged("tensor \"" + std::string(name) + "\": " + why, name);
    };
    const json::object* object = value.if_object();
    if (!object) return bad("its entry is no object");
    TensorInfo info;
    for (const auto& [key, field] : *object) {
        if (key == "dtype") {
            if (!field.is_string()) return bad("dtype is no string");
            info.type_name = std::string(field.get_string());
            info.type = type_of(info.type_name);
        } else if (key == "shape") {
            if (!field.is_array()) return bad("shape is no array");
            if (field.get_array().size() > limits::tensor_rank_max)
                return bad("more than " + std::to_string(limits::tensor_rank_max) + " dimensions");
            for (const json::value& dimension : field.get_array()) {
                const auto extent = natural(dimension);
                if (!extent) return bad("shape holds something that is no natural number");
                info.shape.push_back(*extent);
            }
        } else if (key == "data_offsets") {
            const json::array* pair = field.if_array();
            if (!pair || pair->size() != 2) return bad("data_offsets is no pair");
            const auto begin = natural((*pair)[0]), end = natural((*pair)[1]);
            if (!begin || !end) return bad("data_offsets are no natural numbers");
            info.begin = *begin;
            info.end = *end;
        } else {
            return bad("unknown key \"" + std::string(key) + "\"");
        }
    }
    for (const char* key : {"dtype", "shape", "data_offsets"})
        if (!object->contains(key)) return bad(std::string(key) + " is missing");
    const uint32_t bits = bits_of(info.type_name);
    if (bits == 0) return bad("unknown dtype \"" + info.type_name + "\"");
    uint64_t expected = bits;  // bits
    for (const uint64_t extent : info.shape)
        if (__builtin_mul_overflow(expected, extent, &expected)) return bad("its shape is larger than any file");
    if (info.begin > info.end) return bad("data_offsets end before they begin");
    if (info.end - info.begin > file_bytes_max || expected != (info.end - info.begin) * 8)
        return bad("data_offsets span " + std::to_string(info.end - info.begin) +
                   " bytes, which is not what its shape and " + info.type_name + " need");
    return info;
}

}  // namespace

Result<SafetensorsHeader> parse_safetensors_header(std::string_view head, uint64_t file_bytes) {
    if (head.size() < 8 || file_bytes < 8) return damaged("shorter than the 8 bytes of the header's length");
    uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | uint8_t(head[size_t(i)]);
    if (length > limits::safetensors_header_bytes_max)
        return damaged("a header of " + std::to_string(length) + " bytes, more than the bound of " +
                       std::to_string(limits::safetensors_header_bytes_max));
    if (length > file_bytes - 8 || length > head.size() - 8)
        return damaged("truncated: a header of " + std::to_string(length) + " bytes in a file of " +
                       std::to_string(file_bytes));
    auto root = parse_json(head.substr(8, length), "header");
    if (!root) return root.error();

    SafetensorsHeader out;
    out.data_begin = 8 + length;
    const uint64_t data_bytes = file_bytes - out.data_begin;
    for (const auto& [key, value] : root->get_object()) {
        if (key == "__metadata__") continue;  // free text of whoever wrote it
        if (key.size() > limits::tensor_name_bytes_max)
            return damaged("a tensor name longer than " + std::to_string(limits::tensor_name_bytes_max) + " bytes");
        if (out.tensors.size() == limits::safetensors_tensors_max)
            return damaged("more than " + std::to_string(limits::safetensors_tensors_max) + " tensors");
        auto info = read_tensor(key, value);
        if (!info) return info.error();
        if (info->end > data_bytes)
            return damaged("truncated: tensor \"" + std::string(key) + "\" ends at byte " + std::to_string(info->end) +
                               " of " + std::to_string(data_bytes) + " bytes of data",
                           key);
        out.tensors.emplace(std::string(key), std::move(*info));
    }

    // No holes and no overlaps, as the format demands: a byte belongs to one tensor.
    std::vector<std::pair<std::string_view, const TensorInfo*>> ordered;
    for (const auto& [name, info] : out.tensors) ordered.emplace_back(name, &info);
    std::sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) {
        return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
    });
    uint64_t at = 0;
    for (const auto& [name, info] : ordered) {
        if (info->begin != at)
            return damaged("tensor \"" + std::string(name) + "\" " +
                               (info->begin < at ? "overlaps" : "leaves a hole after") + " the one before it",
                           name);
        at = info->end;
    }
    if (at != data_bytes) return damaged(std::to_string(data_bytes - at) + " bytes of data belong to no tensor");
    return out;
}

void Tensor::read_row(uint64_t row, float* out) const {
    const uint64_t n = columns();
    const uint8_t* from = data + row * n * (info->type == TensorType::f32 ? 4 : 2);
    if (info->type == TensorType::f32) {
        std::memcpy(out, from, n * 4);
        return;
    }
    for (uint64_t i = 0; i < n; ++i) {
        uint16_t half;
        std::memcpy(&half, from + 2 * i, 2);
        out[i] = info->type == TensorType::bf16 ? float_of_bf16(half) : float_of_f16(half);
    }
}

struct Safetensors::File {
    std::string name;
    const uint8_t* map = nullptr;
    size_t bytes = 0;
    SafetensorsHeader header;

    File() = default;
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() {
        if (map) munmap(const_cast<uint8_t*>(map), bytes);
    }
};

Safetensors::Safetensors() = default;
Safetensors::Safetensors(Safetensors&&) noexcept = default;
Safetensors& Safetensors::operator=(Safetensors&&) noexcept = default;
Safetensors::~Safetensors() = default;

namespace {

/// A file as a whole, mapped. Null bytes: it does not exist, where that is allowed.
struct Mapping {
    const uint8_t* map = nullptr;
    size_t bytes = 0;
};

Result<Mapping> map_file(const std::string& path, const std::string& name) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return damaged(name + ": " + std::strerror(errno));
    struct stat status = {};
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size <= 0) {
        ::close(fd);
        return damaged(name + ": empty, or no regular file");
    }
    void* map = mmap(nullptr, size_t(status.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
    const int reason = errno;
    ::close(fd);
    if (map == MAP_FAILED) return damaged(name + ": cannot be mapped: " + std::strerror(reason));
    return Mapping{static_cast<const uint8_t*>(map), size_t(status.st_size)};
}

}  // namespace

Result<void> Safetensors::add_file(const std::string& directory, const std::string& name) {
    auto mapping = map_file(directory + "/" + name, name);
    if (!mapping) return mapping.error();
    auto file = std::make_unique<File>();
    file->name = name;
    file->map = mapping->map;
    file->bytes = mapping->bytes;
    const size_t head = std::min(file->bytes, limits::safetensors_header_bytes_max + 8);
    auto header = parse_safetensors_header({reinterpret_cast<const char*>(file->map), head}, file->bytes);
    if (!header) return Error{header.error().code, name + ": " + header.error().message, header.error().param};
    file->header = std::move(*header);
    for (const auto& [tensor, info] : file->header.tensors)
        if (!tensors_.emplace(tensor, Place{file.get(), &info}).second)
            return damaged(name + ": tensor \"" + tensor + "\" is in another file too", tensor);
    files_.push_back(std::move(file));
    return {};
}

Result<void> Safetensors::add_shards(const std::string& directory, std::string_view index) {
    const std::string what = "model.safetensors.index.json";
    auto root = parse_json(index, what);
    if (!root) return root.error();
    const json::value* weights = root->get_object().if_contains("weight_map");
    if (!weights || !weights->is_object()) return damaged(what + ": weight_map is missing or no object", "weight_map");
    std::set<std::string> shards;
    for (const auto& [tensor, file] : weights->get_object()) {
        if (!file.is_string())
            return damaged(what + ": the file of \"" + std::string(tensor) + "\" is no string", tensor);
        const std::string name(file.get_string());
        if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos ||
            name.find('\0') != std::string::npos)
            return damaged(what + ": \"" + name + "\" is no name of a file beside it", tensor);
        shards.insert(name);
        if (shards.size() > limits::safetensors_shards_max)
            return damaged(what + ": more than " + std::to_string(limits::safetensors_shards_max) + " files");
    }
    for (const std::string& shard : shards)
        if (auto added = add_file(directory, shard); !added) return added;
    for (const auto& [tensor, file] : weights->get_object()) {
        const auto found = tensors_.find(std::string_view(tensor));
        if (found == tensors_.end() || found->second.file->name != std::string_view(file.get_string()))
            return damaged(
                what + ": tensor \"" + std::string(tensor) + "\" is not in " + std::string(file.get_string()), tensor);
    }
    return {};
}

Result<Safetensors> Safetensors::open(const std::string& directory) {
    Safetensors out;
    const std::string index = directory + "/model.safetensors.index.json";
    if (access((directory + "/model.safetensors").c_str(), F_OK) == 0 || access(index.c_str(), F_OK) != 0) {
        if (auto added = out.add_file(directory, "model.safetensors"); !added) return added.error();
        return out;
    }
    auto mapping = map_file(index, "model.safetensors.index.json");
    if (!mapping) return mapping.error();
    if (mapping->bytes > limits::safetensors_index_bytes_max) {
        munmap(const_cast<uint8_t*>(mapping->map), mapping->bytes);
        return damaged("model.safetensors.index.json: larger than " +
                       std::to_string(limits::safetensors_index_bytes_max) + " bytes");
    }
    const std::string text(reinterpret_cast<const char*>(mapping->map), mapping->bytes);
    munmap(const_cast<uint8_t*>(mapping->map), mapping->bytes);
    if (auto added = out.add_shards(directory, text); !added) return added.error();
    return out;
}

Result<Tensor> Safetensors::find(std::string_view name, uint64_t rows, uint64_t columns) const {
    const auto found = tensors_.find(name);
    const std::string quoted = "tensor \"" + std::string(name) + "\"";
    if (found == tensors_.end()) return damaged(quoted + " is missing", name);
    const TensorInfo& info = *found->second.info;
    if (info.type == TensorType::other)
        return damaged(quoted + ": " + info.type_name + " is not built (F32, BF16, F16 are)", name);
    const std::vector<uint64_t> expected =
        rows == 0 ? std::vector<uint64_t>{columns} : std::vector<uint64_t>{rows, columns};
    if (info.shape != expected) {
        const auto text = [](const std::vector<uint64_t>& shape) {
            std::string out;
            for (const uint64_t extent : shape) out += (out.empty() ? "" : " x ") + std::to_string(extent);
            return "[" + out + "]";
        };
        return damaged(quoted + " has shape " + text(info.shape) + ", and config.json asks for " + text(expected),
                       name);
    }
    const File& file = *found->second.file;
    return Tensor{found->first, &info, file.map + file.header.data_begin + info.begin};
}

std::vector<std::string_view> Safetensors::names() const {
    std::vector<std::string_view> out;
    for (const auto& [name, place] : tensors_) out.push_back(name);
    return out;
}

uint64_t Safetensors::data_bytes() const {
    uint64_t sum = 0;
    for (const auto& file : files_) sum += file->bytes - file->header.data_begin;
    return sum;
}

}  // namespace mainstay
