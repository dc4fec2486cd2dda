package session

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// An operation is what a client asks of a cache, as metrics name it.
type operation int

const (
	opValidPaths operation = iota
	opPathInfo
	opClosure
	opAllPaths
	opSendNAR
	opReceiveNAR
	opSignatures
	opRealisation
	opLog
	operations
)

var operationNames = [operations]string{"valid paths", "path info", "closure", "all paths", "send NAR", "receive NAR", "signatures", "realisation", "log"}

var descOperations = prometheus.NewDesc("firn_ssh_operations_total", "What was asked for, also when it was refused.", []string{"operation"}, nil)

// Operations counts what clients ask for, in all conversations that share it. It is a prometheus.Collector.
type Operations struct{ counts [operations]atomic.Int64 }

func (o *Operations) count(op operation) {
	if o != nil {
		o.counts[op].Add(1)
	}
}

// Describe tells the metric.
func (o *Operations) Describe(ch chan<- *prometheus.Desc) { ch <- descOperations }

// Collect tells its values.
func (o *Operations) Collect(ch chan<- prometheus.Metric) {
	for op, name := range operationNames {
		ch <- prometheus.MustNewConstMetric(descOperations, prometheus.CounterValue, float64(o.counts[op].Load()), name)
	}
}
