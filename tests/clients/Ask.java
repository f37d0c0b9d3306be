import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.stream.Collectors;

/** Java's own HttpClient, which asks for HTTP/2 with every request: java Ask.java URL BODY.json prints the answer. */
public class Ask {
    public static void main(String[] arguments) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0] + "/chat/completions"))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofFile(Path.of(arguments[1])))
            .build();
        HttpResponse<java.util.stream.Stream<String>> response =
            HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofLines());
        System.out.println(response.body().collect(Collectors.joining("\n")));
        System.exit(response.statusCode() == 200 ? 0 : 1);
    }
}
