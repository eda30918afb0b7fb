# syntax=docker/dockerfile:1
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags=-s -o /lethe ./cmd/lethe

# Alpine instead of an empty image: health checks need a wget, people a shell.
FROM alpine:3.22
RUN adduser -D -u 10001 lethe
COPY --from=build /lethe /usr/local/bin/lethe
USER lethe
WORKDIR /etc/lethe
# Inside a container the loopback address is of no use to anybody outside it.
ENV LETHE_LISTEN=0.0.0.0:7401
EXPOSE 7401
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
  CMD wget -q -O /dev/null http://127.0.0.1:7401/healthz
# `run` drains at the first SIGTERM and hurries at the second.
STOPSIGNAL SIGTERM
ENTRYPOINT ["lethe"]
CMD ["run"]
