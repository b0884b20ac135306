// The words of the command line: what CLI11 parses, and what each leads to.
#include <CLI/CLI.hpp>
#include <functional>

#include "runtime/base/version.h"
#include "tools/cli_commands.h"
#include "tools/cli_completion.h"

namespace mainstay {
namespace {

struct Words {
    CliAddressOptions address;
    std::string output = "table";
    uint32_t timeout_seconds = 60;
    std::string name, call, file, as, result, shell, to, directory, out, node, cluster;
    ChatOptions chat;
    size_t limit = 100;
    uint64_t after = 0;
    bool dry_run = false, yes = false, undo = false, problems = false, accept_loss = false;
    size_t decisions = 50;
    bool json() const { return output == "json"; }
};

using Command = std::function<void(CliContext&)>;

/// Leaves: the chosen command is put into `chosen`; what needs no daemon into `local`.
class Tree {
  public:
    Tree(CLI::App& app, Words& words) : app_(app), words_(words) {
        add_globals();
        add_agents();
        add_sessions();
        add_workers();
        add_cluster();
        add_nodes();
        add_shards();
        add_others();
        app_.require_subcommand(1);
    }
    Command chosen;
    std::function<void(CliStreams&)> local;

  private:
    CLI::App* leaf(CLI::App* parent, const char* name, const char* help, Command command) {
        auto* sub = parent->add_subcommand(name, help);
        sub->callback([this, command = std::move(command)] { chosen = command; });
        return sub;
    }
    void add_globals() {
        app_.add_option("--url", words_.address.url, "address of the daemon (else MAINSTAY_URL, else DIR/listen)");
        app_.add_option("--key", words_.address.key, "its key (else MAINSTAY_ADMIN_KEY, else DIR/admin.key)");
        app_.add_option("--data", words_.address.data, "data directory of a daemon on this machine")
            ->capture_default_str();
        app_.add_option("-o,--output", words_.output, "table for people, json for scripts")
            ->check(CLI::IsMember({"table", "json"}))
            ->capture_default_str();
        app_.add_option("--timeout", words_.timeout_seconds, "seconds that an answer may take")
            ->check(CLI::Range(1, 3600))
            ->capture_default_str();
        app_.fallthrough();  // global options may stand behind the command
    }
    void add_agents() {
        auto* agent = app_.add_subcommand("agent", "agents: apply, list, show")->alias("agents")->require_subcommand(1);
        agent->fallthrough();
        auto* apply = leaf(agent, "apply", "make a file the latest version of its agent",
                           [this](CliContext& c) { apply_agent(c, words_.file, words_.dry_run); });
        apply->add_option("file", words_.file, "TOML, or JSON where the name ends in .json")->required();
        apply->add_flag("--dry-run", words_.dry_run, "only print what would change");
        leaf(agent, "list", "the latest version of each", [](CliContext& c) { list_agents(c); });
        leaf(agent, "show", "one agent as applied", [this](CliContext& c) { show_agent(c, words_.name); })
            ->add_option("name", words_.name)
            ->required();
        auto* model = app_.add_subcommand("model", "models: list")->alias("models")->require_subcommand(1);
        model->fallthrough();
        leaf(model, "list", "what a request may name as `model`", [](CliContext& c) { list_models(c); });
    }
    void add_sessions() {
        auto* session = app_.add_subcommand("session", "sessions: list, show, events, delete, resolve, migrate")
                            ->alias("sessions")
                            ->require_subcommand(1);
        session->fallthrough();
        leaf(session, "list", "newest last", [this](CliContext& c) { list_sessions(c, words_.limit); })
            ->add_option("--limit", words_.limit, "at most so many")
            ->check(CLI::Range(1, 1'000'000))
            ->capture_default_str();
        leaf(session, "show", "one session", [this](CliContext& c) { show_session(c, words_.name); })
            ->add_option("id", words_.name)
            ->required();
        auto* events = leaf(session, "events", "its journal, in order",
                            [this](CliContext& c) { list_events(c, words_.name, words_.after); });
        events->add_option("id", words_.name)->required();
        events->add_option("--after", words_.after, "only what follows this sequence number");
        auto* remove = leaf(session, "delete", "delete it and all its history",
                            [this](CliContext& c) { delete_session(c, words_.name, words_.yes); });
        remove->add_option("id", words_.name)->required();
        remove->add_flag("--yes", words_.yes, "do not ask");
        auto* resolve =
            leaf(session, "resolve", "say what became of a call whose outcome is unknown",
                 [this](CliContext& c) { resolve_call(c, words_.name, words_.call, words_.as, words_.result); });
        resolve->add_option("id", words_.name)->required();
        resolve->add_option("call", words_.call, "id of the call's item")->required();
        resolve->add_option("--as", words_.as, "what happened")
            ->required()
            ->check(CLI::IsMember({"done", "failed", "retry"}));
        resolve->add_option("--result", words_.result, "JSON that the call returned");
        auto* migrate = leaf(session, "migrate", "let another node of the cluster lead it, and all of its shard",
                             [this](CliContext& c) { migrate_session(c, words_.name, words_.to); });
        migrate->add_option("id", words_.name)->required();
        migrate->add_option("--to", words_.to, "node: a unique beginning of its uuid")->required();
    }
    void add_workers() {
        auto* worker = app_.add_subcommand("worker", "accelerator workers: list, show, drain")
                           ->alias("workers")
                           ->require_subcommand(1);
        worker->fallthrough();
        leaf(worker, "list", "of every model on a device of its own", [](CliContext& c) { list_workers(c); });
        leaf(worker, "show", "all that is known of one", [this](CliContext& c) { show_worker(c, words_.name); })
            ->add_option("name", words_.name, "MODEL/INDEX")
            ->required();
        auto* drain = leaf(worker, "drain", "give it nothing new",
                           [this](CliContext& c) { drain_worker(c, words_.name, words_.undo); });
        drain->add_option("name", words_.name, "MODEL/INDEX")->required();
        drain->add_flag("--undo", words_.undo, "let it work again");
    }
    /// A command that needs no daemon.
    CLI::App* offline(CLI::App* parent, const char* name, const char* help, std::function<void(CliStreams&)> command) {
        auto* sub = parent->add_subcommand(name, help);
        sub->callback([this, command = std::move(command)] { local = command; });
        return sub;
    }
    void add_cluster() {
        auto* cluster = app_.add_subcommand("cluster", "the cluster: status, decisions; init, join, adopt offline")
                            ->require_subcommand(1);
        cluster->fallthrough();
        leaf(cluster, "status", "who is there, and what is wrong", [](CliContext& c) { show_cluster(c); });
        auto* decisions = leaf(cluster, "decisions", "what this node's placement did, and why",
                               [this](CliContext& c) { list_decisions(c, words_.name, words_.decisions); });
        decisions->add_option("--shard", words_.name, "only of this one");
        decisions->add_option("--limit", words_.decisions, "at most so many")
            ->check(CLI::Range(1, 100))
            ->capture_default_str();
        offline(cluster, "init", "make a new cluster's id and CA",
                [this](CliStreams& s) { init_cluster(s, words_.directory, words_.json()); })
            ->add_option("directory", words_.directory, "where to")
            ->required();
        auto* join = offline(cluster, "join", "make a node's certificate", [this](CliStreams& s) {
            join_cluster(s, words_.directory, words_.out, words_.node, words_.json());
        });
        join->add_option("directory", words_.directory, "that `cluster init` made")->required();
        join->add_option("--out", words_.out, "what the node is to have")->required();
        join->add_option("--node", words_.node, "uuid of the node (else a new one)");
        offline(cluster, "adopt", "make the data directory (--data) of a node that was alone a cluster's first copy",
                [this](CliStreams& s) { adopt(s, words_.address.data, words_.cluster, words_.json()); })
            ->add_option("--cluster", words_.cluster, "directory with cluster.id")
            ->required();
    }
    void add_nodes() {
        auto* node = app_.add_subcommand("node", "nodes of the cluster: list, show, drain, undrain")
                         ->alias("nodes")
                         ->require_subcommand(1);
        node->fallthrough();
        leaf(node, "list", "all that live or hold something", [](CliContext& c) { list_nodes(c); });
        const auto one = [&](const char* name, const char* help, Command command) {
            leaf(node, name, help, std::move(command))
                ->add_option("node", words_.name, "uuid, or 4 characters or more of its beginning")
                ->required();
        };
        one("show", "one node", [this](CliContext& c) { show_node(c, words_.name); });
        one("drain", "move everything off it", [this](CliContext& c) { drain_node(c, words_.name, true); });
        one("undrain", "let it take part again", [this](CliContext& c) { drain_node(c, words_.name, false); });
    }
    void add_shards() {
        auto* shard = app_.add_subcommand("shard", "shards of the cluster: list, show, move, force-lead")
                          ->alias("shards")
                          ->require_subcommand(1);
        shard->fallthrough();
        leaf(shard, "list", "who leads and who holds each", [this](CliContext& c) {
            list_shards(c, words_.problems);
        })->add_flag("--problems", words_.problems, "only those with one");
        const auto one = [&](const char* name, const char* help, Command command) {
            auto* sub = leaf(shard, name, help, std::move(command));
            sub->add_option("shard", words_.name, "its number")->required();
            return sub;
        };
        one("show", "one shard, and why it is where it is", [this](CliContext& c) { show_shard(c, words_.name); });
        one("move", "let another node lead it", [this](CliContext& c) { move_shard(c, words_.name, words_.to); })
            ->add_option("--to", words_.to, "the node")
            ->required();
        one("force-lead", "the last resort: this node's copy alone goes on, whatever others hold",
            [this](CliContext& c) { force_lead(c, words_.name, words_.accept_loss); })
            ->add_flag("--accept-loss", words_.accept_loss, "what is not in this copy is lost, and that is known");
    }
    void add_others() {
        auto* talk = leaf(&app_, "chat", "talk to an agent", [this](CliContext& c) { chat(c, words_.chat); });
        talk->add_option("agent", words_.chat.agent, "agent or model")->required();
        talk->add_option("--conversation", words_.chat.conversation, "go on with this one");
        talk->add_option("--message", words_.chat.message, "say this and end");
        leaf(&app_, "explain", "what was decided in a session, and why",
             [this](CliContext& c) { explain_session(c, words_.name); })
            ->add_option("session", words_.name)
            ->required();
        leaf(&app_, "status", "whether the daemon is alive and ready", [](CliContext& c) { show_status(c); });
        app_.add_subcommand("version", "the release of this program")->callback([this] {
            local = [](CliStreams& streams) { streams.out << "mainstay " << build_version() << "\n"; };
        });
        auto* completion = app_.add_subcommand("completion", "a completion script for a shell");
        completion->add_option("shell", words_.shell)->required()->check(CLI::IsMember({"bash", "zsh"}));
        completion->callback(
            [this] { local = [this](CliStreams& streams) { streams.out << completion_script(app_, words_.shell); }; });
    }

    CLI::App& app_;
    Words& words_;
};

}  // namespace

int run_cli(const std::vector<std::string>& given, const CliEnvironment& environment, CliStreams streams) {
    Words words;
    CLI::App app{"mainstay: agents and sessions of a Mainstay daemon", "mainstay"};
    app.set_version_flag("--version", "mainstay " + std::string(build_version()));
    Tree tree(app, words);
    try {
        auto reversed = std::vector<std::string>(given.rbegin(), given.rend());  // CLI11 takes them from the back
        app.parse(std::move(reversed));
    } catch (const CLI::ParseError& problem) {
        const int status = app.exit(problem, streams.out, streams.error);
        return static_cast<int>(status == 0 ? ExitStatus::ok : ExitStatus::usage);
    }
    try {
        if (tree.local) {
            tree.local(streams);
            return 0;
        }
        words.address.environment_url = environment.url;
        words.address.environment_key = environment.key;
        CliClient client(find_address(words.address), words.timeout_seconds * 1000);
        CliContext context{client, streams, words.json()};
        tree.chosen(context);
        return 0;
    } catch (const CliFailure& failure) {
        streams.error << "mainstay: " << failure.message << "\n";
        return static_cast<int>(failure.status);
    }
}

}  // namespace mainstay
