package sshd

// TakeLittle has a server take fewer bytes of a connection, and of all connections of a key, before they are read.
func (o Options) TakeLittle(connection, key int64) Options {
	o.limits = newLimits(connection, key)
	return o
}
