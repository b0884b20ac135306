// mainstay-nrt-worker: the process that owns the Neuron runtime and a set of cores for the daemon, which starts it with
// a channel as descriptor 3. Nobody starts it by hand.

#include <CLI/CLI.hpp>

#include "runtime/inference/nrt_worker.h"

int main(int argc, char** argv) {
    mainstay::NrtWorkerOptions options;
    CLI::App app{"Owns the Neuron runtime for one device of mainstayd, which starts it."};
    app.add_option("--library", options.library, "libnrt to load; empty: where it is usually installed");
    app.add_option("--model", options.directory, "folder with nrt_model.json")->required();
    CLI11_PARSE(app, argc, argv);
    return mainstay::run_nrt_worker(options);
}
