module firn/e2e

go 1.26.0

require firn v0.0.0

require (
	github.com/klauspost/compress v1.20.3 // indirect
	golang.org/x/sync v0.24.0 // indirect
)

replace firn => ../
