#pragma once
// Canonical JSON: keys sorted, no spaces, numbers in their shortest form, defaults left out by the caller. Two texts
// that mean the same give the same bytes, and the version of an agent is the digest of these bytes. Pure.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace mainstay {

class CanonicalObject {
  public:
    void put_text(std::string_view key, std::string_view value);
    void put_number(std::string_view key, uint64_t value);
    void put_real(std::string_view key, double value);
    void put_flag(std::string_view key, bool value);
    void put_texts(std::string_view key, const std::vector<std::string>& values);
    void put_text_map(std::string_view key, const std::map<std::string, std::string>& values);
    void put_object(std::string_view key, const CanonicalObject& value);
    void put_objects(std::string_view key, const std::vector<CanonicalObject>& values);

    bool empty() const { return fields_.empty(); }
    std::string render() const;

  private:
    std::map<std::string, std::string, std::less<>> fields_;  // key -> rendered value
};

/// A JSON string literal. `text` is UTF-8.
std::string quote_json(std::string_view text);

}  // namespace mainstay
