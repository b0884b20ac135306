#pragma once
// The rows of one shard: which rows of the state are a shard's, and all of them as a stream of bytes in a file, for a
// replica that is too far behind to be sent entries (docs/formats/snapshot.md). The stream ends with a count and a
// digest of what came before, so that one that was cut or damaged is never installed.

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/digest.h"
#include "runtime/base/fold.h"
#include "runtime/store/shard_log.h"

namespace mainstay {

/// The tables that hold rows of shards: all but meta.
inline constexpr std::array shard_tables = {Table::head, Table::turn,   Table::key,   Table::due,
                                            Table::open, Table::entity, Table::memory};

/// How the keys of a shard's rows begin, in every table but `due`, whose keys begin with a time.
std::string shard_prefix(ShardId shard);
bool in_shard(Table table, std::string_view key, ShardId shard);

/// Writes a stream to a file that has no name once it is open: it goes with the object.
class ShardRowsWriter {
  public:
    static Result<std::unique_ptr<ShardRowsWriter>> create(const std::filesystem::path& directory);
    ~ShardRowsWriter();
    Result<void> add(Table table, std::string_view key, std::string_view value);
    /// The finished stream, to be read in parts.
    Result<std::unique_ptr<ShardSnapshot>> finish(const LogPosition& position) &&;

  private:
    explicit ShardRowsWriter(int file) : file_(file) {}
    Result<void> put(std::string_view bytes);
    Result<void> flush();

    int file_;
    std::string buffer_;
    uint64_t bytes_ = 0, rows_ = 0, digest_ = 0;
};

/// Parts of a stream put together again on the receiving side.
class ShardRowsReader {
  public:
    static Result<std::unique_ptr<ShardRowsReader>> create(const std::filesystem::path& directory);
    ~ShardRowsReader();
    Result<void> add(std::string_view part);
    /// All rows; state_damaged where the stream is cut or its digest does not hold.
    Result<std::vector<RowOp>> rows();

  private:
    explicit ShardRowsReader(int file) : file_(file) {}
    int file_;
    uint64_t bytes_ = 0;
};

}  // namespace mainstay
