package chunk

// Gear is for the rules that a test writes plainly.
var Gear = &gear
