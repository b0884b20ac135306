#pragma once
// Weights on disk: the safetensors format (https://huggingface.co/docs/safetensors), one file or shards with an index.
// Layout of a file: 8 bytes header length (little-endian), that many bytes of JSON {name: {dtype, shape,
// data_offsets}}, then the data, without holes or overlaps. A file is mapped read-only; it must not be changed or
// truncated while it is open, as any mapping. Everything a header says is checked against the file before a byte of
// data is looked at.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/result.h"

namespace mainstay {

/// Weights that we compute with; a file may hold others, which are refused when asked for.
enum class TensorType : uint8_t { f32, bf16, f16, other };

struct TensorInfo {
    TensorType type = TensorType::other;
    std::string type_name;  // as the file names it
    std::vector<uint64_t> shape;
    uint64_t begin = 0;  // bytes from the start of the data
    uint64_t end = 0;
};
using TensorInfos = std::map<std::string, TensorInfo, std::less<>>;

struct SafetensorsHeader {
    TensorInfos tensors;
    uint64_t data_begin = 0;  // bytes from the start of the file
};

/// `head` are the first bytes of the file, at least the header. Pure. Fails with model_not_loadable; `param` names the
/// tensor, where one is at fault.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view head, uint64_t file_bytes);

/// A tensor of an open model.
struct Tensor {
    std::string_view name;
    const TensorInfo* info = nullptr;
    const uint8_t* data = nullptr;

    uint64_t rows() const { return info->shape.size() == 2 ? info->shape[0] : 1; }
    uint64_t columns() const { return info->shape.back(); }
    /// Row `row` as floats.
    void read_row(uint64_t row, float* out) const;
    std::string_view bytes() const { return {reinterpret_cast<const char*>(data), size_t(info->end - info->begin)}; }
};

/// All tensors of a model directory: model.safetensors, or what model.safetensors.index.json lists.
class Safetensors {
  public:
    static Result<Safetensors> open(const std::string& directory);
    Safetensors(Safetensors&&) noexcept;
    Safetensors& operator=(Safetensors&&) noexcept;
    ~Safetensors();

    /// Of shape [columns] (rows 0) or [rows, columns], and of a type that we compute with.
    Result<Tensor> find(std::string_view name, uint64_t rows, uint64_t columns) const;
    std::vector<std::string_view> names() const;  // sorted
    bool contains(std::string_view name) const { return tensors_.count(name) > 0; }
    uint64_t data_bytes() const;

  private:
    struct File;
    struct Place {
        const File* file;
        const TensorInfo* info;
    };
    Safetensors();
    Result<void> add_file(const std::string& directory, const std::string& name);
    Result<void> add_shards(const std::string& directory, std::string_view index);

    std::vector<std::unique_ptr<File>> files_;
    std::map<std::string, Place, std::less<>> tensors_;
};

}  // namespace mainstay
