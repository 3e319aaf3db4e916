package translate

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func TestAddresses(t *testing.T) {
	yes, no := true, false
	slice := func(family discoveryv1.AddressType, port string, number int32, endpoints ...discoveryv1.Endpoint) discoveryv1.EndpointSlice {
		return discoveryv1.EndpointSlice{AddressType: family, Ports: []discoveryv1.EndpointPort{{Name: &port, Port: &number}}, Endpoints: endpoints}
	}
	at := func(ip string, c discoveryv1.EndpointConditions) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: c}
	}
	ready := discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no}
	ending := discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
	ended := discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &yes}
	unready := discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &no}
	unknown := discoveryv1.EndpointConditions{}
	const v4, v6 = discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6
	unnamed := slice(v4, "", 80, at("10.0.0.1", ready))
	unnamed.Ports[0].Name = nil

	tests := []struct {
		name   string
		slices []discoveryv1.EndpointSlice
		port   string
		want   []Endpoint
	}{{
		name: "no slice",
	}, {
		name: "ready ones of all slices, in order",
		slices: []discoveryv1.EndpointSlice{
			slice(v4, "http", 8080, at("10.0.0.2", ready), at("10.0.0.4", unready)),
			slice(v4, "http", 8081, at("10.0.0.1", unknown)),
		},
		port: "http",
		want: []Endpoint{{"10.0.0.1", 8081, 1}, {"10.0.0.2", 8080, 1}},
	}, {
		name:   "ready ones rather than ending ones",
		slices: []discoveryv1.EndpointSlice{slice(v4, "http", 8080, at("10.0.0.2", ending), at("10.0.0.1", ready))},
		port:   "http",
		want:   []Endpoint{{"10.0.0.1", 8080, 1}},
	}, {
		name:   "ending ones rather than none, while they serve",
		slices: []discoveryv1.EndpointSlice{slice(v4, "http", 8080, at("10.0.0.2", ending), at("10.0.0.1", ended))},
		port:   "http",
		want:   []Endpoint{{"10.0.0.2", 8080, 1}},
	}, {
		name:   "another port",
		slices: []discoveryv1.EndpointSlice{slice(v4, "http", 8080, at("10.0.0.2", ready))},
		port:   "grpc",
	}, {
		name:   "a port without a name",
		slices: []discoveryv1.EndpointSlice{unnamed},
		want:   []Endpoint{{"10.0.0.1", 80, 1}},
	}, {
		name:   "in two slices at once",
		slices: []discoveryv1.EndpointSlice{slice(v4, "http", 80, at("10.0.0.1", ready)), slice(v4, "http", 80, at("10.0.0.1", ready))},
		port:   "http",
		want:   []Endpoint{{"10.0.0.1", 80, 1}},
	}, {
		name:   "of two families the older",
		slices: []discoveryv1.EndpointSlice{slice(v6, "http", 80, at("fd00::1", ready)), slice(v4, "http", 80, at("10.0.0.1", ready))},
		port:   "http",
		want:   []Endpoint{{"10.0.0.1", 80, 1}},
	}, {
		name:   "only the newer",
		slices: []discoveryv1.EndpointSlice{slice(v6, "http", 80, at("fd00::1", ready))},
		port:   "http",
		want:   []Endpoint{{"fd00::1", 80, 1}},
	}, {
		name: "names, nothing and nonsense",
		slices: []discoveryv1.EndpointSlice{
			slice(discoveryv1.AddressTypeFQDN, "http", 80, at("a.example.com", ready)),
			slice(v4, "http", 80, discoveryv1.Endpoint{}, at("10.0.0.300", ready)),
		},
		port: "http",
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Addresses(tt.slices, tt.port)); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		})
	}
}
