#include "cluster/certificates.h"

#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <vector>

namespace mainstay {

namespace {

template <auto free_one>
struct Free {
    template <class T>
    void operator()(T* one) const {
        free_one(one);
    }
};
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Bio = std::unique_ptr<BIO, Free<BIO_free_all>>;
using Extension = std::unique_ptr<X509_EXTENSION, Free<X509_EXTENSION_free>>;
using Serial = std::unique_ptr<BIGNUM, Free<BN_free>>;
using Store = std::unique_ptr<X509_STORE, Free<X509_STORE_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, Free<X509_STORE_CTX_free>>;
using Names = std::unique_ptr<GENERAL_NAMES, Free<GENERAL_NAMES_free>>;

constexpr size_t pem_bytes_max = 64 * 1024;
constexpr long day_seconds = 24 * 3600;
constexpr long backdate_seconds = 3600;  // for nodes whose clocks are behind

Error failed(const std::string& what) {
    const unsigned long why = ERR_get_error();
    ERR_clear_error();
    const char* reason = why ? ERR_reason_error_string(why) : nullptr;
    return {ErrorCode::internal, what + (reason ? std::string(": ") + reason : std::string()), {}};
}

// --- files ----------------------------------------------------------------------------------------------------------

/// Files that are made together: unless kept, those that were made are removed again.
class NewFiles {
  public:
    NewFiles() = default;
    NewFiles(const NewFiles&) = delete;
    NewFiles& operator=(const NewFiles&) = delete;
    ~NewFiles() {
        for (const std::string& file : made_) ::unlink(file.c_str());
    }
    Result<void> add(const std::string& file, std::string_view text, mode_t mode) {
        const int descriptor = ::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        if (descriptor < 0 && errno == EEXIST) return {ErrorCode::conflict, file + ": is there already"};
        if (descriptor < 0) return {ErrorCode::internal, file + ": " + std::strerror(errno)};
        made_.push_back(file);
        size_t done = 0;
        while (done < text.size()) {
            const ssize_t n = ::write(descriptor, text.data() + done, text.size() - done);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) break;
            done += size_t(n);
        }
        const bool whole = done == text.size() && ::fsync(descriptor) == 0;
        const int error = errno;
        if (::close(descriptor) != 0 || !whole) return {ErrorCode::internal, file + ": " + std::strerror(error)};
        return {};
    }
    void keep() { made_.clear(); }

  private:
    std::vector<std::string> made_;
};

Result<std::string> read_text(const std::string& file) {
    std::ifstream in(file, std::ios::binary);
    if (!in) return {ErrorCode::invalid_request, file + ": cannot be read"};
    std::string text(pem_bytes_max + 1, '\0');
    in.read(text.data(), std::streamsize(text.size()));
    text.resize(size_t(in.gcount()));
    if (in.bad()) return {ErrorCode::invalid_request, file + ": cannot be read"};
    if (text.size() > pem_bytes_max) return {ErrorCode::invalid_request, file + ": is too large"};
    return text;
}

Result<void> make_directory(const std::string& directory) {
    if (::mkdir(directory.c_str(), 0700) == 0) return {};
    struct stat found;
    if (errno == EEXIST && ::stat(directory.c_str(), &found) == 0 && S_ISDIR(found.st_mode)) return {};
    return {ErrorCode::internal, directory + ": cannot be made"};
}

/// A copy that is there already must be the same.
Result<void> add_copy(NewFiles& files, const std::string& file, const std::string& text) {
    if (::access(file.c_str(), F_OK) != 0) return files.add(file, text, 0644);
    auto found = read_text(file);
    if (!found) return found.error();
    if (*found != text) return {ErrorCode::conflict, file + ": is there already, and of another cluster"};
    return {};
}

// --- PEM ------------------------------------------------------------------------------------------------------------

Bio reader_of(const std::string& text) { return Bio(BIO_new_mem_buf(text.data(), int(text.size()))); }

/// A key with a password is refused instead of asked for.
int no_password(char*, int, int, void*) { return -1; }

Result<Certificate> load_certificate(const std::string& file) {
    auto text = read_text(file);
    if (!text) return text.error();
    Certificate out(PEM_read_bio_X509(reader_of(*text).get(), nullptr, no_password, nullptr));
    ERR_clear_error();
    if (!out) return {ErrorCode::invalid_request, file + ": is no certificate"};
    return out;
}

Result<Key> load_key(const std::string& file) {
    auto text = read_text(file);
    if (!text) return text.error();
    Key out(PEM_read_bio_PrivateKey(reader_of(*text).get(), nullptr, no_password, nullptr));
    ERR_clear_error();
    OPENSSL_cleanse(text->data(), text->size());
    if (!out) return {ErrorCode::invalid_request, file + ": is no private key without a password"};
    return out;
}

std::string text_of(BIO* bio) {
    char* data = nullptr;
    const long size = BIO_get_mem_data(bio, &data);
    return size > 0 ? std::string(data, size_t(size)) : std::string();
}

std::string pem_of(X509* certificate) {
    const Bio out(BIO_new(BIO_s_mem()));
    return PEM_write_bio_X509(out.get(), certificate) == 1 ? text_of(out.get()) : std::string();
}

std::string pem_of(EVP_PKEY* key) {
    const Bio out(BIO_new(BIO_s_secmem()));
    const int done = PEM_write_bio_PKCS8PrivateKey(out.get(), key, nullptr, nullptr, 0, nullptr, nullptr);
    return done == 1 ? text_of(out.get()) : std::string();
}

// --- making ---------------------------------------------------------------------------------------------------------

struct ExtensionText {
    int kind;
    std::string value;
};

struct Signer {
    X509* certificate;  // null: it signs itself
    EVP_PKEY* key;
};

bool add_extension(X509* to, X509* issuer, const ExtensionText& text) {
    X509V3_CTX context;
    X509V3_set_ctx_nodb(&context);
    X509V3_set_ctx(&context, issuer, to, nullptr, nullptr, 0);
    const Extension one(X509V3_EXT_conf_nid(nullptr, &context, text.kind, text.value.c_str()));
    return one && X509_add_ext(to, one.get(), -1) == 1;
}

bool set_serial(X509* certificate) {
    // 159 random bits: positive and within the 20 bytes of RFC 5280.
    const Serial serial(BN_new());
    return serial && BN_rand(serial.get(), 159, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) == 1 &&
           BN_to_ASN1_INTEGER(serial.get(), X509_get_serialNumber(certificate));
}

bool set_name(X509* certificate, const std::string& name) {
    return X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC,
                                      reinterpret_cast<const unsigned char*>(name.data()), int(name.size()), -1,
                                      0) == 1;
}

/// Until `days` from now, but not longer than its issuer.
bool set_validity(X509* certificate, X509* issuer, uint32_t days) {
    if (!X509_gmtime_adj(X509_getm_notBefore(certificate), -backdate_seconds)) return false;
    if (!X509_time_adj_ex(X509_getm_notAfter(certificate), int(days), 0, nullptr)) return false;
    if (!issuer || ASN1_TIME_compare(X509_get0_notAfter(certificate), X509_get0_notAfter(issuer)) <= 0) return true;
    return X509_set1_notAfter(certificate, X509_get0_notAfter(issuer)) == 1;
}

Result<Certificate> make_certificate(const std::string& name, EVP_PKEY* key, const Signer& signer, uint32_t days,
                                     const std::vector<ExtensionText>& extensions) {
    Certificate out(X509_new());
    X509* issuer = signer.certificate ? signer.certificate : out.get();
    bool good = out && X509_set_version(out.get(), X509_VERSION_3) == 1 && set_serial(out.get()) &&
                set_name(out.get(), name) && set_validity(out.get(), signer.certificate, days) &&
                X509_set_issuer_name(out.get(), X509_get_subject_name(issuer)) == 1 &&
                X509_set_pubkey(out.get(), key) == 1;
    for (const ExtensionText& extension : extensions) good = good && add_extension(out.get(), issuer, extension);
    if (!good || X509_sign(out.get(), signer.key, EVP_sha256()) <= 0) return failed("a certificate cannot be made");
    return out;
}

Result<ClusterUuid> random_uuid() {
    ClusterUuid uuid;
    if (RAND_bytes(uuid.data(), int(uuid.size())) != 1) return failed("no random bytes");
    uuid[6] = uint8_t((uuid[6] & 0x0f) | 0x40);  // RFC 9562, version 4
    uuid[8] = uint8_t((uuid[8] & 0x3f) | 0x80);
    return uuid;
}

// --- reading --------------------------------------------------------------------------------------------------------

std::optional<NodeUuid> common_name(X509* certificate) {
    char name[64] = {};
    if (X509_NAME_get_text_by_NID(X509_get_subject_name(certificate), NID_commonName, name, sizeof name) <= 0)
        return {};
    return parse_uuid(name);
}

/// Of exactly one DNS name and nothing else.
std::optional<NodeUuid> alternative_name(X509* certificate) {
    const Names names(
        static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
    if (!names || sk_GENERAL_NAME_num(names.get()) != 1) return {};
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), 0);
    if (name->type != GEN_DNS) return {};
    return parse_uuid({reinterpret_cast<const char*>(ASN1_STRING_get0_data(name->d.dNSName)),
                       size_t(ASN1_STRING_length(name->d.dNSName))});
}

CertificateFacts facts_of(X509* certificate) {
    CertificateFacts out;
    const auto node = common_name(certificate);
    if (node && node == alternative_name(certificate)) out.node = node;
    out.ca = X509_check_ca(certificate) == 1;
    int days = 0, seconds = 0;
    // Both parts have one sign; a part of a day that is over counts as one.
    if (ASN1_TIME_diff(&days, &seconds, nullptr, X509_get0_notAfter(certificate)) == 1)
        out.days_left = seconds < 0 ? days - 1 : days;
    return out;
}

/// Nothing if it is signed by `ca`, valid now, and for both ends of a connection.
std::optional<std::string> verify(X509* certificate, X509* ca) {
    for (const int purpose : {X509_PURPOSE_SSL_SERVER, X509_PURPOSE_SSL_CLIENT}) {
        const Store store(X509_STORE_new());
        const StoreContext context(X509_STORE_CTX_new());
        if (!store || !context || X509_STORE_add_cert(store.get(), ca) != 1 ||
            X509_STORE_CTX_init(context.get(), store.get(), certificate, nullptr) != 1 ||
            X509_STORE_CTX_set_purpose(context.get(), purpose) != 1)
            return "cannot be verified";
        const bool good = X509_verify_cert(context.get()) == 1;
        ERR_clear_error();
        if (!good) return X509_verify_cert_error_string(X509_STORE_CTX_get_error(context.get()));
    }
    return {};
}

}  // namespace

std::optional<NodeUuid> parse_uuid(std::string_view text) {
    const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
    NodeUuid out{};
    size_t at = 0;
    for (uint8_t& byte : out) {
        if (at < text.size() && text[at] == '-') ++at;
        if (at + 2 > text.size()) return {};
        const int high = digit(text[at]), low = digit(text[at + 1]);
        if (high < 0 || low < 0) return {};
        byte = uint8_t(high << 4 | low);
        at += 2;
    }
    return to_text(out) == text ? std::optional(out) : std::nullopt;
}

Result<ClusterUuid> make_cluster(const std::string& directory, uint32_t days) {
    if (auto made = make_directory(directory); !made) return made.error();
    auto uuid = random_uuid();
    if (!uuid) return uuid;
    const Key key(EVP_EC_gen("P-256"));
    if (!key) return failed("a key cannot be made");
    auto ca = make_certificate("mainstay cluster " + to_text(*uuid), key.get(), {nullptr, key.get()}, days,
                               {{NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
                                {NID_key_usage, "critical,keyCertSign,cRLSign"},
                                {NID_subject_key_identifier, "hash"}});
    if (!ca) return ca.error();
    NewFiles files;
    if (auto added = files.add(directory + "/ca.key", pem_of(key.get()), 0600); !added) return added.error();
    if (auto added = files.add(directory + "/ca.pem", pem_of(ca->get()), 0644); !added) return added.error();
    if (auto added = files.add(directory + "/cluster.id", to_text(*uuid) + "\n", 0644); !added) return added.error();
    files.keep();
    return uuid;
}

Result<void> make_node_certificate(const std::string& ca_directory, const NodeUuid& node, const std::string& directory,
                                   uint32_t days) {
    auto ca = load_certificate(ca_directory + "/ca.pem");
    if (!ca) return ca.error();
    auto ca_key = load_key(ca_directory + "/ca.key");
    if (!ca_key) return ca_key.error();
    auto ca_text = read_text(ca_directory + "/ca.pem");
    if (!ca_text) return ca_text.error();
    auto cluster = read_cluster_uuid(ca_directory);
    if (!cluster) return cluster.error();
    if (X509_check_private_key(ca->get(), ca_key->get()) != 1) {
        ERR_clear_error();
        return {ErrorCode::invalid_request, ca_directory + ": ca.key is not that of ca.pem"};
    }
    if (auto made = make_directory(directory); !made) return made;
    const Key key(EVP_EC_gen("P-256"));
    if (!key) return failed("a key cannot be made");
    const std::string name = to_text(node);
    auto certificate = make_certificate(name, key.get(), {ca->get(), ca_key->get()}, days,
                                        {{NID_basic_constraints, "critical,CA:FALSE"},
                                         {NID_key_usage, "critical,digitalSignature"},
                                         {NID_ext_key_usage, "serverAuth,clientAuth"},
                                         {NID_subject_alt_name, "DNS:" + name},
                                         {NID_subject_key_identifier, "hash"},
                                         {NID_authority_key_identifier, "keyid:always"}});
    if (!certificate) return certificate.error();
    NewFiles files;
    if (auto added = files.add(directory + "/node.key", pem_of(key.get()), 0600); !added) return added;
    if (auto added = files.add(directory + "/node.pem", pem_of(certificate->get()), 0644); !added) return added;
    if (auto added = add_copy(files, directory + "/ca.pem", *ca_text); !added) return added;
    if (auto added = add_copy(files, directory + "/cluster.id", to_text(*cluster) + "\n"); !added) return added;
    files.keep();
    return {};
}

Result<CertificateFacts> read_certificate(const std::string& file) {
    auto certificate = load_certificate(file);
    if (!certificate) return certificate.error();
    return facts_of(certificate->get());
}

Result<void> check_certificate(const std::string& ca_file, const std::string& certificate_file,
                               const std::string& key_file, const NodeUuid& node) {
    auto ca = load_certificate(ca_file);
    if (!ca) return ca.error();
    auto certificate = load_certificate(certificate_file);
    if (!certificate) return certificate.error();
    auto key = load_key(key_file);
    if (!key) return key.error();
    if (!facts_of(ca->get()).ca) return {ErrorCode::invalid_request, ca_file + ": is no CA"};
    if (facts_of(certificate->get()).node != node)
        return {ErrorCode::invalid_request, certificate_file + ": is not that of node " + to_text(node)};
    const bool fits = X509_check_private_key(certificate->get(), key->get()) == 1;
    ERR_clear_error();
    if (!fits) return {ErrorCode::invalid_request, key_file + ": is not that of " + certificate_file};
    if (auto why = verify(certificate->get(), ca->get()))
        return {ErrorCode::invalid_request, certificate_file + ": " + *why};
    return {};
}

Result<ClusterUuid> read_cluster_uuid(const std::string& directory) {
    auto text = read_text(directory + "/cluster.id");
    if (!text) return text.error();
    std::string_view line = *text;
    if (!line.empty() && line.back() == '\n') line.remove_suffix(1);
    const auto uuid = parse_uuid(line);
    if (!uuid) return {ErrorCode::invalid_request, directory + "/cluster.id: is no uuid"};
    return *uuid;
}

}  // namespace mainstay
