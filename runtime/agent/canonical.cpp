#include "runtime/agent/canonical.h"

#include <charconv>

namespace mainstay {

std::string quote_json(std::string_view text) {
    constexpr char hex[] = "0123456789abcdef";
    std::string out = "\"";
    for (const char c : text) {
        const auto byte = static_cast<uint8_t>(c);
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (c == '\n') {
            out += "\\n";
        } else if (c == '\t') {
            out += "\\t";
        } else if (c == '\r') {
            out += "\\r";
        } else if (byte < 0x20) {
            out += "\\u00";
            out += hex[byte >> 4];
            out += hex[byte & 15];
        } else {
            out += c;
        }
    }
    return out += '"';
}

void CanonicalObject::put_text(std::string_view key, std::string_view value) {
    fields_.insert_or_assign(std::string(key), quote_json(value));
}

void CanonicalObject::put_number(std::string_view key, uint64_t value) {
    fields_.insert_or_assign(std::string(key), std::to_string(value));
}

void CanonicalObject::put_real(std::string_view key, double value) {
    char text[40];
    const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
    fields_.insert_or_assign(std::string(key), std::string(text, end));
}

void CanonicalObject::put_flag(std::string_view key, bool value) {
    fields_.insert_or_assign(std::string(key), value ? "true" : "false");
}

void CanonicalObject::put_texts(std::string_view key, const std::vector<std::string>& values) {
    std::string out = "[";
    for (const auto& value : values) out += (out.size() == 1 ? "" : ",") + quote_json(value);
    fields_.insert_or_assign(std::string(key), out + "]");
}

void CanonicalObject::put_text_map(std::string_view key, const std::map<std::string, std::string>& values) {
    CanonicalObject object;
    for (const auto& [name, value] : values) object.put_text(name, value);
    put_object(key, object);
}

void CanonicalObject::put_object(std::string_view key, const CanonicalObject& value) {
    fields_.insert_or_assign(std::string(key), value.render());
}

void CanonicalObject::put_objects(std::string_view key, const std::vector<CanonicalObject>& values) {
    std::string out = "[";
    for (const auto& value : values) out += (out.size() == 1 ? "" : ",") + value.render();
    fields_.insert_or_assign(std::string(key), out + "]");
}

std::string CanonicalObject::render() const {
    std::string out = "{";
    for (const auto& [key, value] : fields_) out += (out.size() == 1 ? "" : ",") + quote_json(key) + ":" + value;
    return out + "}";
}

}  // namespace mainstay
