#pragma once
// The commands of `mainstay`, each a plain function of a client and its words. They throw CliFailure; run_cli turns
// that into a message on stderr and an exit status. Nothing here reads flags or the environment but run_cli.

#include <istream>
#include <ostream>
#include <string>
#include <vector>

#include "tools/cli_client.h"

namespace mainstay {

struct CliStreams {
    std::istream& in;
    std::ostream& out;
    std::ostream& error;
    bool interactive = false;  // a person types and reads: stdin and stdout are terminals
};

struct CliEnvironment {
    std::string url, key;  // MAINSTAY_URL, MAINSTAY_ADMIN_KEY
};

/// The whole program: `words` without its name.
int run_cli(const std::vector<std::string>& words, const CliEnvironment& environment, CliStreams streams);

struct CliContext {
    CliClient& client;
    CliStreams& streams;
    bool json = false;
};

void apply_agent(CliContext& context, const std::string& file, bool dry_run);
void list_agents(CliContext& context);
void show_agent(CliContext& context, const std::string& name);
void list_models(CliContext& context);
void list_sessions(CliContext& context, size_t limit);
void show_session(CliContext& context, const std::string& id);
void list_events(CliContext& context, const std::string& id, uint64_t after);
void delete_session(CliContext& context, const std::string& id, bool yes);
void resolve_call(CliContext& context, const std::string& id, const std::string& call, const std::string& as,
                  const std::string& result);
void explain_session(CliContext& context, const std::string& id);
void list_workers(CliContext& context);
void show_worker(CliContext& context, const std::string& name);
void drain_worker(CliContext& context, const std::string& name, bool undo);
void show_status(CliContext& context);

void show_cluster(CliContext& context);
/// `shard` empty: of all.
void list_decisions(CliContext& context, const std::string& shard, size_t limit);
void list_nodes(CliContext& context);
void show_node(CliContext& context, const std::string& name);
void drain_node(CliContext& context, const std::string& name, bool on);
void list_shards(CliContext& context, bool problems_only);
void show_shard(CliContext& context, const std::string& name);
void migrate_session(CliContext& context, const std::string& session, const std::string& to);
void move_shard(CliContext& context, const std::string& name, const std::string& to);
/// Without accept_loss it only says what would be lost, and fails.
void force_lead(CliContext& context, const std::string& name, bool accept_loss);
// Without a daemon.
void init_cluster(CliStreams& streams, const std::string& directory, bool as_json);
/// `name` empty: a new uuid.
void join_cluster(CliStreams& streams, const std::string& directory, const std::string& out, const std::string& name,
                  bool as_json);
void adopt(CliStreams& streams, const std::string& data, const std::string& cluster, bool as_json);

struct ChatOptions {
    std::string agent, conversation, message;
};
void chat(CliContext& context, ChatOptions options);

}  // namespace mainstay
