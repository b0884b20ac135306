#pragma once
// Reads one table of a tree key by key, each with its bound, and in the end refuses what nobody asked for. The first
// problem is kept and everything after it answers with defaults, so that a caller reads straight through and asks once.
//
// A reader borrows the tree and the Problem for the length of the call that made it.

#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/agent/tree.h"

namespace mainstay {

/// The first thing that was wrong with a document.
class Problem {
  public:
    explicit Problem(std::string source) : source_(std::move(source)) {}

    void report(ErrorCode code, const Node& at, std::string_view path, std::string_view what);
    bool any() const { return error_.has_value(); }
    const Error& error() const { return *error_; }
    const std::string& source() const { return source_; }

  private:
    std::string source_;
    std::optional<Error> error_;
};

class TableReader {
  public:
    /// `path` is empty for the document itself. A node that is no table is reported.
    TableReader(const Node& node, std::string path, Problem& problem);

    bool has(std::string_view key);  // counts as asked for
    /// `min` 1: may not be empty. Control characters (but tab and newline) are refused: they end up in logs and argv.
    std::string text(std::string_view key, size_t bytes_max, size_t bytes_min = 0);
    uint64_t number(std::string_view key, uint64_t otherwise, uint64_t min, uint64_t max);
    std::optional<double> real(std::string_view key, double min, double max);
    /// "10s" or a whole number of milliseconds.
    uint64_t duration_ms(std::string_view key, uint64_t otherwise, uint64_t min, uint64_t max);
    /// "64MB" or a whole number of bytes.
    uint64_t size_bytes(std::string_view key, uint64_t otherwise, uint64_t min, uint64_t max);
    bool flag(std::string_view key, bool otherwise);
    /// Index into `words`; `otherwise` if the key is absent.
    size_t choice(std::string_view key, const std::vector<std::string_view>& words, size_t otherwise);
    std::vector<std::string> texts(std::string_view key, size_t count_max, size_t bytes_max);
    /// A single text stands for a list of one.
    std::vector<std::string> text_or_texts(std::string_view key, size_t count_max, size_t bytes_max);
    std::map<std::string, std::string> text_map(std::string_view key, size_t count_max, size_t bytes_max);
    /// Null if absent or of another kind (reported).
    const Node* table(std::string_view key);
    const std::vector<Node>* tables(std::string_view key, size_t count_max);
    /// A word of the language that is not built: not_yet, naming it. `instead` may say what works today.
    void not_yet(std::string_view key, std::string_view instead = {});
    /// Reports keys that nobody asked for. Call last.
    void finish();

    std::string path_of(std::string_view key) const;
    const Node& node() const { return node_; }
    /// `key` may be empty: the table itself. Points at the key's line where the key exists.
    void refuse(ErrorCode code, std::string_view key, std::string_view what);

  private:
    const Node* want(std::string_view key, Node::Kind kind);
    bool check_text(const Node& value, std::string_view path, size_t min, size_t max);

    const Node& node_;
    std::string path_;
    Problem& problem_;
    std::set<std::string, std::less<>> asked_;
};

}  // namespace mainstay
