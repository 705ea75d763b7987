// Go's own reverse proxy, with every write flushed at once: the reference for the other subjects.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"time"
)

func main() {
	listen := flag.String("listen", "", "host:port to listen on")
	upstream := flag.String("upstream", "", "base URL of the upstream")
	ca := flag.String("ca", "", "PEM file of the upstream's CA")
	flag.Parse()

	target, err := url.Parse(*upstream)
	if err != nil {
		log.Fatal(err)
	}
	transport := &http.Transport{
		MaxIdleConns:        4096,
		MaxIdleConnsPerHost: 4096,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
	}
	if *ca != "" {
		pem, err := os.ReadFile(*ca)
		if err != nil {
			log.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		// An empty map disables HTTP/2: all subjects use HTTP/1.1 to the upstream.
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = transport
	proxy.FlushInterval = -1
	proxy.ErrorLog = log.New(os.Stderr, "", 0)
	log.Fatal(http.ListenAndServe(*listen, proxy))
}
