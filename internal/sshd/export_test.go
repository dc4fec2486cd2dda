package sshd

// TakeLittle has a server take little of a connection before it is read.
func (o Options) TakeLittle(most, least int64) Options {
	o.unread = newUnread()
	o.unread.most, o.unread.least = most, least
	return o
}

// Unread is what all connections have sent and nobody has read.
func (s *Server) Unread() int64 { return s.unread.all.Load() }
